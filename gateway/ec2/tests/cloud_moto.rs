//! The contract of a provider of machines over a real moto server, and what each word of EC2 means. What moto does not do, the proxy before it does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::Credentials;
use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_ec2::cloud::{Ec2, Parts, TAG_GATEWAY, TAG_NUMBER};
use intergrid_ec2::daemon;
use intergrid_gateway::config::{CloudConfig, Ec2Config, GatewayConfig};
use intergrid_gateway::laws::cloud::{GATEWAY, Place, check};
use intergrid_gateway::rent::{Cloud, Launch};
use intergrid_proto::SiteId;
use intergrid_proto::net::issue::new_site;
use intergrid_provision::{Billing, MachineType, OfferKey, Outcome, Price, Rate, Refused, SeenState};
use intergrid_tests::ec2::{CREDENTIALS, Fault, Moto, Proxy, all, first};

/// moto takes any.
async fn client(config: &Ec2Config) -> Client {
    let [(_, id), (_, secret), _] = CREDENTIALS;
    daemon::client(config, Some(Credentials::new(id, secret, None, None, "test"))).await
}

struct World {
    moto: Moto,
    proxy: Arc<Proxy>,
    dir: tempfile::TempDir,
    config: Ec2Config,
    site: SiteId,
}

impl World {
    fn new() -> World {
        let moto = Moto::start();
        let proxy = Proxy::to(&moto);
        let dir = tempfile::tempdir().unwrap();
        new_site(dir.path().join("id"), "burst", &[]).unwrap();
        let config = Ec2Config {
            region: "us-east-1".into(),
            endpoint_url: Some(proxy.url()),
            gateway: "grid.example.org:7411".into(),
            ami: Some(moto.image()),
            tags: [("project".to_string(), "x".to_string())].into(),
            ..Ec2Config::default()
        };
        World { moto, proxy, dir, config, site: SiteId([7; 16]) }
    }

    /// As a gateway has it that was just started.
    async fn cloud(&self) -> Arc<Ec2> {
        self.cloud_of(self.site, "state").await
    }

    async fn cloud_of(&self, site: SiteId, state: &str) -> Arc<Ec2> {
        let parts = Parts {
            config: self.config.clone(),
            gateway: GATEWAY.into(),
            site,
            state: self.dir.path().join(state),
            identity: self.dir.path().join("id"),
            alone_ms: 900_000,
        };
        Ec2::new(client(&self.config).await, parts)
    }

    fn has_token(&self, number: u64) -> bool {
        std::fs::metadata(self.dir.path().join(format!("state/tokens/burst-m{number}.pem"))).is_ok_and(|file| file.len() > 0)
    }
}

impl Place for World {
    fn machine_type(&self) -> String {
        "m5.large".into()
    }

    fn open(&self, other: bool) -> BoxFuture<'_, Arc<dyn Cloud>> {
        let (site, state) = if other { (SiteId([8; 16]), "other") } else { (self.site, "state") };
        async move { self.cloud_of(site, state).await as Arc<dyn Cloud> }.boxed()
    }

    fn running(&self) -> usize {
        self.moto.running().len()
    }

    fn forget(&self) {
        self.proxy.forget_tokens();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moto_keeps_the_laws_of_every_provider() {
    check(&World::new()).await.unwrap();
}

fn machine(number: u64) -> Launch {
    Launch {
        number,
        label: format!("burst-m{number}"),
        offer: OfferKey { machine: "m5.large".into(), zone: String::new(), spot: false },
        kind: MachineType { slots: 2, memory_bytes: 4 << 30, gpus: 0, architecture: "x86_64".into(), machines_max: None },
        price: Price { rate: Rate(96_000), ceiling: Rate(96_000), billing: Billing::Second { min_s: 60 } },
        endpoint: String::new(),
    }
}

fn id(outcome: Outcome) -> String {
    match outcome {
        Outcome::Launched(id) => id,
        other => panic!("{other:?}"),
    }
}

/// Of an instance, in a listing.
fn tags(said: &str) -> Vec<(String, String)> {
    let pair = |tag: &String| (first(tag, "key").unwrap(), first(tag, "value").unwrap());
    all(&first(said, "tagSet").unwrap(), "item").iter().map(pair).collect()
}

#[tokio::test]
async fn moto_keeps_the_laws_of_a_provider() {
    let w = World::new();
    let cloud = w.cloud().await;
    assert_eq!(Some(vec![]), cloud.list().await);
    let one = id(cloud.launch(machine(1)).await);
    // The same machine, and not a second one; also for a gateway that was started again, and by its tags alone where EC2 has forgotten the token.
    assert_eq!(one, id(cloud.launch(machine(1)).await));
    assert_eq!(one, id(w.cloud().await.launch(machine(1)).await));
    w.proxy.forget_tokens();
    assert_eq!(one, id(w.cloud().await.launch(machine(1)).await));
    assert_eq!(1, w.moto.instances().len());
    let two = id(cloud.launch(machine(2)).await);
    assert_ne!(one, two);
    let mut seen: Vec<_> = cloud.list().await.unwrap().into_iter().map(|s| (s.number, s.id, s.state)).collect();
    seen.sort_by_key(|s| s.0);
    assert_eq!(vec![(Some(1), one.clone(), SeenState::Exists), (Some(2), two.clone(), SeenState::Exists)], seen);
    // Another gateway of the same account sees none of them.
    let other = World { site: SiteId([8; 16]), dir: tempfile::tempdir().unwrap(), config: w.config.clone(), proxy: w.proxy.clone(), moto: w.moto };
    assert_eq!(Some(vec![]), other.cloud().await.list().await);
    let w = World { site: w.site, dir: w.dir, config: w.config, proxy: w.proxy, moto: other.moto };
    assert!(w.has_token(1));
    assert!(cloud.terminate(one.clone()).await.is_some());
    let ended = cloud.list().await.unwrap().into_iter().find(|s| s.id == one && s.state == SeenState::Ended).expect("it is listed");
    let now_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    assert!(ended.ended_ms.is_some_and(|at_ms| at_ms.abs_diff(now_ms) < 60_000), "EC2 says when: {ended:?}, {now_ms}");
    assert!(!w.has_token(1) && w.has_token(2), "its end is certain");
    // What its number launched is gone, also where EC2 has forgotten it; and EC2 says so where we have.
    assert!(matches!(cloud.launch(machine(1)).await, Outcome::Refused(Refused::TokenSpent, _)));
    assert!(cloud.terminate(two.clone()).await.is_some());
    std::fs::remove_file(w.dir.path().join("state/tokens/burst-m2.pem")).unwrap();
    assert!(matches!(cloud.launch(machine(2)).await, Outcome::Refused(Refused::TokenSpent, _)));
    let three = id(cloud.launch(machine(3)).await);
    assert!(matches!(cloud.launch(machine(1)).await, Outcome::Refused(Refused::TokenSpent, _)));
    assert_eq!(Some(SeenState::Ended), cloud.terminate(one).await.map(|_| SeenState::Ended));
    assert_eq!(None, cloud.terminate("i-0123456789abcdef0".into()).await, "of what it does not know, it says nothing");
    assert_eq!(vec![three], w.moto.running());
    assert_eq!(3, w.proxy.launched().len());
}

#[tokio::test]
async fn moto_gets_machines_as_they_must_be() {
    let mut w = World::new();
    let subnet = w.moto.subnets().remove(0);
    w.config.key_name = Some("keys".into());
    w.moto.ask("CreateKeyPair", &[("KeyName", "keys")]);
    let cloud = w.cloud().await;
    let offer = OfferKey { machine: "m5.large".into(), zone: subnet.clone(), spot: true };
    let spot = id(cloud.launch(Launch { offer, ..machine(1) }).await);
    let plain = id(cloud.launch(machine(2)).await);
    let about = |id: &str| w.moto.ask("DescribeInstances", &[("InstanceId.1", id)]);
    let said = about(&spot);
    let tags = tags(&said);
    for (key, value) in [(TAG_GATEWAY, "07070707070707070707070707070707"), (TAG_NUMBER, "1"), ("Name", "burst-m1"), ("project", "x")] {
        assert!(tags.contains(&(key.to_string(), value.to_string())), "{key}: {tags:?}");
    }
    let is = |said: &str, tag: &str| first(said, tag).unwrap_or_default();
    assert_eq!(
        ("required", "1", "spot"),
        (is(&said, "httpTokens").as_str(), is(&said, "httpPutResponseHopLimit").as_str(), is(&said, "instanceLifecycle").as_str())
    );
    assert_eq!(
        (subnet.as_str(), "keys", "m5.large"),
        (is(&said, "subnetId").as_str(), is(&said, "keyName").as_str(), is(&said, "instanceType").as_str())
    );
    assert_eq!("", is(&about(&plain), "instanceLifecycle"));
    assert_eq!("terminate", w.moto.attribute(&spot, "instanceInitiatedShutdownBehavior"));
    let volumes = w.moto.ask("DescribeVolumes", &[]);
    assert!(all(&volumes, "tagSet").iter().all(|tags| tags.contains("burst-m")), "{volumes}");
    let asked = w.proxy.launched().into_iter().find(|l| l.id == spot).unwrap().fields;
    let field = |name: &str| asked.get(name).map(String::as_str).unwrap_or_default();
    assert_eq!(("1", "1", "ig-07070707070707070707070707070707-1"), (field("MinCount"), field("MaxCount"), field("ClientToken")));
    let market = ["MaxPrice", "SpotInstanceType", "InstanceInterruptionBehavior"].map(|f| field(&format!("InstanceMarketOptions.SpotOptions.{f}")));
    assert_eq!(["0.096", "one-time", "terminate"], market);
    let told = w.moto.user_data(&spot);
    assert!(told.len() < 16 << 10 && told.contains("name = \"burst-m1\"") && told.contains("BEGIN PRIVATE KEY"), "{} bytes", told.len());
    assert!(!told.contains(CREDENTIALS[1].1), "no credentials of ours");
}

#[tokio::test]
async fn moto_gets_what_the_configuration_and_its_launch_template_say() {
    let mut w = World::new();
    let created = |action: &str, more: &[(&str, &str)], what: &str| first(&w.moto.ask(action, more), what).unwrap();
    let group = |name: &str| created("CreateSecurityGroup", &[("GroupName", name), ("GroupDescription", "of the test")], "groupId");
    let (groups, theirs) = (["one", "two"].map(group).to_vec(), group("theirs"));
    let arn = |name: &str| first(&w.moto.ask_of("iam", "CreateInstanceProfile", &[("InstanceProfileName", name)]), "Arn").unwrap();
    let (by_name, by_arn) = (arn("by-name"), arn("by-arn"));
    let images = w.moto.images();
    let (ours, of_template, later) = (images[0].clone(), images[1].clone(), images[2].clone());
    // A template that would have it all otherwise; of its versions the default one counts.
    let data = [
        ("ImageId", of_template.as_str()),
        ("KeyName", "theirs"),
        ("InstanceType", "m5.xlarge"),
        ("SecurityGroupId.1", theirs.as_str()),
        ("MetadataOptions.HttpTokens", "optional"),
        ("InstanceInitiatedShutdownBehavior", "stop"),
    ]
    .map(|(key, value)| (format!("LaunchTemplateData.{key}"), value));
    let mut template: Vec<(&str, &str)> = data.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    template.push(("LaunchTemplateName", "machines"));
    let template = created("CreateLaunchTemplate", &template, "launchTemplateId");
    created("CreateLaunchTemplateVersion", &[("LaunchTemplateName", "machines"), ("LaunchTemplateData.ImageId", &later)], "versionNumber");

    // What is asked for is seen at the proxy, what came of it at moto.
    let launched = async |w: &World, number: u64| {
        let id = id(w.cloud().await.launch(machine(number)).await);
        let asked = w.proxy.launched().into_iter().find(|l| l.id == id).unwrap().fields;
        let said = w.moto.ask("DescribeInstances", &[("InstanceId.1", &id)]);
        assert_eq!("terminate", w.moto.attribute(&id, "instanceInitiatedShutdownBehavior"), "{number}");
        assert_eq!(Some("required"), first(&said, "httpTokens").as_deref(), "{number}");
        assert_eq!(Some("m5.large"), first(&said, "instanceType").as_deref(), "{number}");
        (asked, said)
    };
    let sorted = |mut groups: Vec<String>| {
        groups.sort();
        groups
    };
    let groups_of = |said: &str| {
        let outside = said.split_once("</networkInterfaceSet>").unwrap().1;
        sorted(all(&first(outside, "groupSet").unwrap(), "groupId"))
    };
    let profile = |said: &str| first(&first(said, "iamInstanceProfile").unwrap(), "arn").unwrap();
    let version = |said: &str| {
        let tags = tags(said);
        let of = |key: &str| tags.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        (of("aws:ec2launchtemplate:id"), of("aws:ec2launchtemplate:version"))
    };

    // Groups and a profile, without a template.
    w.config.security_groups = groups.clone();
    w.config.instance_profile = Some("by-name".into());
    let (asked, said) = launched(&w, 1).await;
    assert_eq!((sorted(groups.clone()), by_name.clone()), (groups_of(&said), profile(&said)));
    assert_eq!((Some(&ours), (None, None)), (first(&said, "imageId").as_ref(), version(&said)));
    assert!(!asked.keys().any(|field| field.starts_with("LaunchTemplate") || field == "IamInstanceProfile.Arn"), "{asked:?}");

    // A template by its name: what is not written here is the template's, and what we always ask for is ours.
    w.config = Ec2Config { ami: None, security_groups: Vec::new(), launch_template: Some("machines".into()), ..w.config.clone() };
    w.config.instance_profile = Some(by_arn.clone());
    let (asked, said) = launched(&w, 2).await;
    assert_eq!((Some("machines"), None), (asked.get("LaunchTemplate.LaunchTemplateName").map(String::as_str), asked.get("ImageId")));
    assert_eq!((Some(template.clone()), Some("1".to_string())), version(&said));
    assert_eq!((Some(of_template), Some("theirs".to_string())), (first(&said, "imageId"), first(&said, "keyName")));
    assert_eq!((vec![theirs], by_arn), (groups_of(&said), profile(&said)));

    // By its id, under what is written here.
    w.config = Ec2Config { ami: Some(ours.clone()), launch_template: Some(template.clone()), key_name: Some("ours".into()), ..w.config.clone() };
    w.config.security_groups = groups.clone();
    let (asked, said) = launched(&w, 3).await;
    let named = ["LaunchTemplateId", "LaunchTemplateName", "Version"].map(|f| asked.get(&format!("LaunchTemplate.{f}")).cloned());
    assert_eq!([Some(template.clone()), None, None], named);
    assert_eq!((Some(template), Some("1".to_string())), version(&said));
    assert_eq!((Some(ours), Some("ours".to_string())), (first(&said, "imageId"), first(&said, "keyName")));
    assert_eq!(sorted(groups), groups_of(&said));
}

#[tokio::test]
async fn moto_and_each_word_of_ec2() {
    let w = World::new();
    let cloud = w.cloud().await;
    let words = [
        (500, "InsufficientInstanceCapacity", Refused::Capacity, "InsufficientInstanceCapacity"),
        (400, "SpotMaxPriceTooLow", Refused::Capacity, "raise the type's `price`"),
        (400, "Unsupported", Refused::Capacity, "not there in this zone"),
        (400, "InstanceLimitExceeded", Refused::Limit, "quota"),
        (400, "VcpuLimitExceeded", Refused::Limit, "quota"),
        (400, "MaxSpotInstanceCountExceeded", Refused::Limit, "quota"),
        (400, "InvalidAMIID.NotFound", Refused::Provider, "correct `ami`"),
        (400, "InvalidAMIID.Malformed", Refused::Provider, "correct `ami`"),
        (401, "AuthFailure", Refused::Provider, "correct the credentials"),
        (403, "UnauthorizedOperation", Refused::Provider, "iam-policy.json"),
        (400, "InvalidSubnetID.NotFound", Refused::Offer, "correct `subnets`"),
        (400, "InvalidParameterCombination", Refused::Offer, "correct the type"),
        (400, "IdempotentInstanceTerminated", Refused::TokenSpent, "Idempotent"),
    ];
    for (n, (status, code, refused, text)) in words.into_iter().enumerate() {
        w.proxy.next("RunInstances", Fault::Refuse(status, code));
        match cloud.launch(machine(n as u64 + 1)).await {
            Outcome::Refused(kind, why) => assert!(kind == refused && why.contains(text), "{code}: {kind:?}, {why}"),
            other => panic!("{code}: {other:?}"),
        }
        assert!(!w.has_token(n as u64 + 1), "{code}: nothing was launched, and nothing is kept");
    }
    assert!(w.moto.instances().is_empty());
    // Not words: it may have been launched.
    for (n, fault) in [Fault::Refuse(500, "InternalError"), Fault::Refuse(503, "Unavailable"), Fault::Then500, Fault::ThenCut].into_iter().enumerate()
    {
        let number = 100 + n as u64;
        w.proxy.next("RunInstances", fault);
        let outcome = cloud.launch(machine(number)).await;
        assert!(matches!(&outcome, Outcome::Unknown(why) if !why.is_empty()), "{fault:?}: {outcome:?}");
        assert!(w.has_token(number));
        // Asked again, also from another configuration: there is one, once.
        let again = id(cloud.launch(machine(number)).await);
        assert_eq!(
            vec![again],
            w.proxy.launched().into_iter().filter(|l| l.fields["ClientToken"].ends_with(&format!("-{number}"))).map(|l| l.id).collect::<Vec<_>>()
        );
    }
    assert_eq!(4, w.moto.running().len());
}

#[tokio::test]
async fn moto_throttles_and_is_asked_again() {
    let w = World::new();
    let cloud = w.cloud().await;
    for _ in 0..3 {
        w.proxy.next("RunInstances", Fault::Refuse(503, "RequestLimitExceeded"));
        w.proxy.next("DescribeInstances", Fault::Refuse(503, "RequestLimitExceeded"));
    }
    id(cloud.launch(machine(1)).await);
    assert_eq!(4, w.proxy.calls("RunInstances"));
    assert_eq!(1, cloud.list().await.unwrap().len());
    assert_eq!((4, 0), (w.proxy.calls("DescribeInstances"), w.proxy.unmet()));
    // Without end: it is said so, and nothing was launched.
    (0..10).for_each(|_| w.proxy.next("RunInstances", Fault::Refuse(503, "RequestLimitExceeded")));
    let began = Instant::now();
    assert!(matches!(cloud.launch(machine(2)).await, Outcome::Refused(Refused::Throttled, _)));
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(1, w.moto.instances().len());
    // A look that fails is not an empty one.
    (0..4).for_each(|_| w.proxy.next("DescribeInstances", Fault::Refuse(500, "InternalError")));
    assert_eq!(None, cloud.list().await);
}

#[tokio::test]
async fn moto_lists_page_by_page_and_late() {
    let w = World::new();
    let cloud = w.cloud().await;
    w.proxy.page(3);
    for number in 1..=8 {
        id(cloud.launch(machine(number)).await);
    }
    let before = w.proxy.calls("DescribeInstances");
    let mut numbers: Vec<u64> = cloud.list().await.unwrap().into_iter().filter_map(|s| s.number).collect();
    numbers.sort();
    assert_eq!((1..=8).collect::<Vec<_>>(), numbers);
    assert_eq!(3, w.proxy.calls("DescribeInstances") - before, "three pages");
    // One page fails: a look that has not seen all is none.
    w.proxy.next("DescribeInstances", Fault::Refuse(403, "UnauthorizedOperation"));
    assert_eq!(None, cloud.list().await);
    // It was launched, its answer is lost, and it is not listed yet: the idempotency token finds it.
    w.proxy.hide(2);
    w.proxy.next("RunInstances", Fault::Then500);
    assert!(matches!(cloud.launch(machine(9)).await, Outcome::Unknown(_)));
    id(cloud.launch(machine(9)).await);
    assert_eq!(9, w.moto.running().len());
    // The configuration was changed in between: the token stands for another request, and the tags find it.
    w.proxy.hide(0);
    w.proxy.next("RunInstances", Fault::ThenCut);
    w.proxy.next("DescribeInstances", Fault::LateAnswer(Duration::from_millis(10)));
    assert!(matches!(cloud.launch(machine(10)).await, Outcome::Unknown(_)));
    std::fs::remove_file(w.dir.path().join("state/tokens/burst-m10.pem")).unwrap();
    id(cloud.launch(machine(10)).await);
    assert_eq!(10, w.moto.running().len());
    // An old copy of the store gives the number again: what it has launched is of another type, and another price, than what is asked for now.
    std::fs::remove_file(w.dir.path().join("state/tokens/burst-m10.pem")).unwrap();
    let offer = OfferKey { machine: "m5.xlarge".into(), zone: String::new(), spot: false };
    let outcome = cloud.launch(Launch { offer, ..machine(10) }).await;
    assert!(matches!(&outcome, Outcome::Refused(Refused::TokenSpent, why) if why.contains("m5.large")), "{outcome:?}");
    assert_eq!(10, w.moto.running().len());
}

#[tokio::test]
async fn moto_says_how_large_a_machine_is() {
    let w = World::new();
    let config = format!(
        "name = \"burst\"\nlisten = \"127.0.0.1:0\"\nstate = \"state\"\nidentity = \"id\"\n[[trust]]\nca = \"id/ca.pem\"\nmay = [\"user\"]\n[cloud]\nprovider = \"ec2\"\n\
         slots_max = 4\ncurrency = \"USD\"\nbudget = {{ hour = \"1\" }}\n[cloud.ec2]\nregion = \"us-east-1\"\nendpoint_url = \"{}\"\ngateway = \"localhost:7411\"\n\
         ami = \"ami-0123456789abcdef0\"\n[[cloud.type]]\nname = \"m5.large\"\nprice = \"0.1\"\nbilling = \"second\"\n",
        w.proxy.url()
    );
    let path = w.dir.path().join("config.toml");
    std::fs::write(&path, config).unwrap();
    let mut cloud: CloudConfig = GatewayConfig::load(&path).unwrap().cloud.unwrap();
    let ec2 = Ec2Config { measure: ["m5.large".to_string()].into(), ..w.config.clone() };
    daemon::measure(&client(&ec2).await, &ec2, &mut cloud).await.unwrap();
    let kind = &cloud.catalogue.types["m5.large"];
    assert_eq!((2, 15 * (8 << 30) / 16), (kind.slots, kind.memory_bytes), "a part is the machine's own");
    cloud.catalogue.types.insert("m6g.large".into(), kind.clone());
    let ec2 = Ec2Config { measure: ["m6g.large".to_string()].into(), ..w.config.clone() };
    daemon::measure(&client(&ec2).await, &ec2, &mut cloud).await.unwrap();
    assert_eq!(["x86_64", "aarch64"], ["m5.large", "m6g.large"].map(|name| cloud.catalogue.types[name].architecture.as_str()));
    let ec2 = Ec2Config { measure: ["m9.small".to_string()].into(), ..w.config.clone() };
    let why = daemon::measure(&client(&ec2).await, &ec2, &mut cloud).await.unwrap_err().to_string();
    assert!(why.contains("\"m9.small\": its size is not known"), "{why}");
}

/// moto says 0.00001 of every type in every zone.
#[tokio::test]
async fn moto_says_what_spot_machines_cost_and_an_unreadable_price_is_the_highest() {
    let w = World::new();
    let cloud = w.cloud().await;
    let types = std::collections::BTreeSet::from(["m5.large", "m5.xlarge"].map(String::from));
    let now = cloud.spot_prices(types.clone()).await.unwrap();
    assert_eq!(types.iter().map(|t| (t.clone(), Rate(10))).collect::<std::collections::BTreeMap<_, _>>(), now);
    assert_eq!(Some(Default::default()), cloud.spot_prices(["x9.none".to_string()].into()).await);
    w.proxy.next("DescribeSpotPriceHistory", Fault::Refuse(403, "UnauthorizedOperation"));
    assert_eq!(None, cloud.spot_prices(types).await);
}
