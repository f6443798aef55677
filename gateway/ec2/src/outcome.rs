//! What an answer of EC2 means for the one question that costs money: is there a machine, or is it certain that there is none?
//!
//! Invariant: only what EC2 itself said in words, or what was never sent, is certain. A time-out, a broken connection and an answer that can't be read are not.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::http::Response;
use intergrid_provision::Refused;

/// Of a reason, for people.
const TEXT_CHARS_MAX: usize = 300;

/// What a failed call means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failed {
    /// It is certain that this call has changed nothing.
    Refused(Refused, String),
    /// This idempotency token stands for another request: something may have been launched with it.
    OtherRequest,
    /// Nobody knows.
    Unknown(String),
}

/// By its code in EC2's words, and the status of HTTP.
fn by_code(code: &str, status: u16) -> Option<(Refused, &'static str)> {
    let said = match code {
        "InsufficientInstanceCapacity" | "InsufficientCapacity" | "InsufficientHostCapacity" | "InsufficientReservedInstanceCapacity" => {
            (Refused::Capacity, "")
        }
        "InsufficientFreeAddressesInSubnet" => (Refused::Capacity, "the subnet has no free address"),
        "Unsupported" => (Refused::Capacity, "the type is not there in this zone"),
        "SpotMaxPriceTooLow" => (Refused::Capacity, "raise the type's `price`, which is the bid"),
        "InstanceLimitExceeded" | "VcpuLimitExceeded" | "MaxSpotInstanceCountExceeded" => (Refused::Limit, "ask AWS for a higher quota"),
        "RequestLimitExceeded" | "Throttling" | "ThrottlingException" | "EC2ThrottledException" | "TooManyRequestsException" => {
            (Refused::Throttled, "")
        }
        "IdempotentInstanceTerminated" => (Refused::TokenSpent, ""),
        code if code.starts_with("InvalidSubnet") => (Refused::Offer, "correct `subnets`"),
        code if code.starts_with("InvalidParameter") => (Refused::Offer, "correct the type, or what does not go with it: `ami`, `market`, `subnets`"),
        // What follows concerns every launch.
        "UnauthorizedOperation" => (Refused::Provider, "give the gateway's principal what deploy/ec2/iam-policy.json lists"),
        "AuthFailure" | "InvalidClientTokenId" | "SignatureDoesNotMatch" | "ExpiredToken" | "RequestExpired" | "MissingAuthenticationToken" => {
            (Refused::Provider, "correct the credentials, or the clock")
        }
        "OptInRequired" | "PendingVerification" | "Blocked" => (Refused::Provider, "the account may not do this in this region"),
        code if code.starts_with("InvalidAMIID") => (Refused::Provider, "correct `ami`"),
        code if code.starts_with("InvalidLaunchTemplate") => (Refused::Provider, "correct `launch_template`"),
        code if code.starts_with("InvalidGroup") || code.starts_with("InvalidSecurityGroup") => (Refused::Provider, "correct `security_groups`"),
        code if code.starts_with("InvalidKeyPair") => (Refused::Provider, "correct `key_name`"),
        code if code.starts_with("InvalidIamInstanceProfile") => (Refused::Provider, "correct `instance_profile`"),
        // A word of EC2 that says no: only where it says that the fault is ours. Nothing says that another type would be refused, too.
        code if !code.is_empty() && (400..500).contains(&status) && status != 408 && status != 429 => (Refused::Offer, ""),
        _ => return None,
    };
    Some(said)
}

/// What a failed call means.
pub fn failed<E>(error: &SdkError<E, Response>) -> Failed
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let said = |refused, what: &str, remedy: &str| {
        let what: String = what.chars().take(TEXT_CHARS_MAX).collect();
        Failed::Refused(refused, if remedy.is_empty() { what } else { format!("{what}; {remedy}") })
    };
    if let Some(why) = credentials(error) {
        return said(Refused::Provider, &why, "give the gateway AWS credentials: environment, ~/.aws, or an instance profile");
    }
    match error {
        SdkError::ConstructionFailure(_) => said(Refused::Provider, &chain(error), ""),
        SdkError::ServiceError(service) => {
            let (code, status) = (service.err().code().unwrap_or_default(), service.raw().status().as_u16());
            if code == "IdempotentParameterMismatch" {
                return Failed::OtherRequest;
            }
            let what = format!("{code}: {}", service.err().message().unwrap_or_default());
            match by_code(code, status) {
                Some((refused, remedy)) => said(refused, &what, remedy),
                None => Failed::Unknown(format!("status {status}, {what}").chars().take(TEXT_CHARS_MAX).collect()),
            }
        }
        other => Failed::Unknown(chain(other).chars().take(TEXT_CHARS_MAX).collect()),
    }
}

/// Where no credentials could be had, nothing was sent.
fn credentials(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut at = Some(error);
    while let Some(e) = at {
        if let Some(why) = e.downcast_ref::<CredentialsError>() {
            return Some(format!("no credentials: {}", chain(why)));
        }
        at = e.source();
    }
    None
}

/// An error with its causes, as a line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(e) = at {
        text = format!("{text}: {e}");
        at = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::operation::run_instances::RunInstancesError;
    use aws_smithy_runtime_api::client::result::ConnectorError;

    use super::*;

    #[test]
    fn only_words_are_certain() {
        let kind = |code, status| by_code(code, status).map(|(refused, _)| refused);
        // EC2 says this with status 500, and it is a word.
        assert_eq!(Some(Refused::Capacity), kind("InsufficientInstanceCapacity", 500));
        assert_eq!(Some(Refused::Throttled), kind("RequestLimitExceeded", 503));
        assert_eq!(Some(Refused::TokenSpent), kind("IdempotentInstanceTerminated", 400));
        assert_eq!(Some(Refused::Limit), kind("VcpuLimitExceeded", 400));
        assert_eq!(Some(Refused::Provider), kind("InvalidAMIID.NotFound", 400));
        for of_one_offer in ["InvalidSubnetID.NotFound", "InvalidParameterValue", "InvalidParameterCombination", "SomethingNew"] {
            assert_eq!(Some(Refused::Offer), kind(of_one_offer, 400), "{of_one_offer}");
        }
        for of_all in ["AuthFailure", "UnauthorizedOperation", "InvalidGroup.NotFound", "InvalidLaunchTemplateId.NotFound"] {
            assert_eq!(Some(Refused::Provider), kind(of_all, 400), "{of_all}");
        }
        let failed = failed::<RunInstancesError>;
        let io = ConnectorError::io("reset by peer".into());
        for unknown in
            [SdkError::timeout_error("late"), SdkError::dispatch_failure(io), SdkError::dispatch_failure(ConnectorError::timeout("connect".into()))]
        {
            assert!(matches!(failed(&unknown), Failed::Unknown(_)), "{unknown:?}");
        }
        let none = ConnectorError::other(CredentialsError::not_loaded("no profile").into(), None);
        for (certain, word) in [(SdkError::construction_failure("no region"), "no region"), (SdkError::dispatch_failure(none), "no credentials")] {
            assert!(matches!(failed(&certain), Failed::Refused(Refused::Provider, text) if text.contains(word)), "{certain:?}");
        }
        for (code, status) in [("", 400), ("", 500), ("InternalError", 500), ("Unavailable", 503), ("SomethingNew", 500), ("SomethingNew", 429)] {
            assert_eq!(None, kind(code, status), "{code} {status}");
        }
    }
}
