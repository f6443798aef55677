//! The notice that a cloud gives before it takes a machine back: asked of the machine's metadata service, as EC2 has it (IMDSv2,
//! `latest/meta-data/spot/instance-action`; AWS gives it two minutes ahead and recommends to ask every 5 s).
//!
//! From the notice on nothing new is begun here, what waits goes back, and the gateway is told why. It does not end what runs: that has its two minutes.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How often it is asked.
const ASK_MS: u64 = 5_000;
/// An answer is there by then.
const ANSWER_MAX_MS: u64 = 2_000;
/// An answer is no longer.
const ANSWER_BYTES_MAX: usize = 4_096;
/// A session with the service lasts so long; it is opened anew when it is refused.
const SESSION_S: &str = "21600";
const SESSION_PATH: &str = "/latest/api/token";
const NOTICE_PATH: &str = "/latest/meta-data/spot/instance-action";
/// Of what the service says, for people.
const WORD_CHARS_MAX: usize = 40;

/// A failure of one call: there will be another.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// `host:port` of a service that is written as `http://host[:port]`.
pub fn authority(url: &str) -> Option<String> {
    let host = url.strip_prefix("http://")?.trim_end_matches('/');
    let (name, port) = host.rsplit_once(':').unwrap_or((host, "80"));
    let good = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '[' | ']' | ':'));
    (good && port.parse::<u16>().is_ok()).then(|| format!("{name}:{port}"))
}

/// Ask until there is one; it is then `told`, and `tell` is called.
pub(crate) async fn watch(at: String, told: Arc<OnceLock<String>>, tell: impl Fn() + Send) {
    let mut session = None;
    loop {
        let asked = timeout(Duration::from_millis(ANSWER_MAX_MS), ask(&at, &mut session)).await;
        match asked.unwrap_or_else(|e| Err(e.into())) {
            Ok(Some(word)) => {
                _ = told.set(format!("the provider takes this machine back: {word}"));
                return tell();
            }
            Ok(None) => {}
            Err(why) => tracing::debug!("{at} can't be asked for notices: {why}"),
        }
        sleep(Duration::from_millis(ASK_MS)).await;
    }
}

async fn ask(at: &str, session: &mut Option<String>) -> Result<Option<String>, Failure> {
    if session.is_none() {
        let (status, token) = call(at, "PUT", SESSION_PATH, ("x-aws-ec2-metadata-token-ttl-seconds", SESSION_S)).await?;
        if status != StatusCode::OK {
            return Err(format!("{SESSION_PATH}: {status}").into());
        }
        *session = Some(token);
    }
    let token = session.clone().unwrap_or_default();
    let (status, body) = call(at, "GET", NOTICE_PATH, ("x-aws-ec2-metadata-token", &token)).await?;
    match status {
        StatusCode::OK => Ok(Some(words(&body))),
        StatusCode::NOT_FOUND => Ok(None),
        other => {
            *session = None;
            Err(format!("{NOTICE_PATH}: {other}").into())
        }
    }
}

async fn call(at: &str, method: &str, path: &str, header: (&str, &str)) -> Result<(StatusCode, String), Failure> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(TcpStream::connect(at).await?)).await?;
    // It ends with the sender.
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(HOST, at).header(header.0, header.1).body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// `{"action": "terminate", "time": "2026-11-21T08:22:00Z"}` as `terminate at 2026-11-21T08:22:00Z`; what else there is, is not passed on.
fn words(body: &str) -> String {
    let field = |name: &str| {
        let rest = body.split_once(&format!("\"{name}\""))?.1.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
        let word: String = rest.split_once('"')?.0.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '.')).collect();
        (!word.is_empty()).then(|| word.chars().take(WORD_CHARS_MAX).collect::<String>())
    };
    match (field("action"), field("time")) {
        (Some(action), Some(time)) => format!("{action} at {time}"),
        (Some(action), None) => action,
        _ => "soon".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_answer_is_a_notice_and_only_its_words_are_passed_on() {
        assert_eq!("terminate at 2026-11-21T08:22:00Z", words("{\"action\": \"terminate\", \"time\": \"2026-11-21T08:22:00Z\"}"));
        assert_eq!("stop", words("{\"time\":7,\"action\" : \"st\u{7}op\"}"));
        for odd in ["", "{", "\"action\"", "\"action\":\"", "{\"action\":\"\"}", "\u{7}<x>"] {
            assert_eq!("soon", words(odd));
        }
        assert!(words(&format!("\"action\":\"{}\"", "a".repeat(999))).len() == WORD_CHARS_MAX);
    }

    #[test]
    fn an_address_is_plain_http() {
        assert_eq!(Some("169.254.169.254:80".into()), authority("http://169.254.169.254"));
        assert_eq!(Some("127.0.0.1:8080".into()), authority("http://127.0.0.1:8080/"));
        for bad in ["", "https://x", "http://", "http://a b", "http://a:99999", "http://a/b", "x:80"] {
            assert_eq!(None, authority(bad), "{bad}");
        }
    }
}
