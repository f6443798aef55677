//! What stands between a gateway and moto: EC2's idempotency, which moto has not, and what goes wrong on the way. It counts what is launched. For machines it is
//! where their agent can be had, and their metadata service (IMDSv2), one for all.
//!
//! Idempotency as EC2 has it: the same token with the same parameters gives the same answer; with others it is refused; of a machine that is gone it says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::http::{Answer, Call, all, call, first, form};

/// Nothing is told to a machine without it.
const SESSION: &str = "a-session-of-the-test";

/// What goes wrong with a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is refused: status, code.
    Refuse(u16, &'static str),
    /// It is done, and the answer comes late.
    LateAnswer(Duration),
    /// It arrives late, whoever is still there.
    LateArrival(Duration),
    /// It is done, and the answer is a 500 that says nothing.
    Then500,
    /// It is done, and the connection is cut.
    ThenCut,
    /// It arrives twice.
    Twice,
}

/// A launch that was done.
#[derive(Clone, Debug)]
pub struct Launched {
    /// The instance.
    pub id: String,
    /// All that was asked for.
    pub fields: BTreeMap<String, String>,
    answer: Answer,
}

#[derive(Default)]
struct State {
    faults: VecDeque<(String, Fault)>,
    /// By idempotency token.
    launched: BTreeMap<String, Launched>,
    /// Those whose tokens are forgotten.
    past: Vec<Launched>,
    /// When each call came.
    came: Vec<(String, Instant)>,
    /// Instances that are not listed yet, and at how many looks.
    hidden: BTreeMap<String, u32>,
    hide_looks: u32,
    page_max: Option<usize>,
    file: Option<PathBuf>,
    notice: Option<String>,
}

/// A proxy in front of moto.
pub struct Proxy {
    endpoint: String,
    state: Arc<Mutex<State>>,
    /// Launches are done one at a time, so that a token is seen before it comes again.
    launches: Arc<Mutex<()>>,
    moto: String,
}

impl Proxy {
    /// In front of this one, without faults.
    pub fn to(moto: &super::Moto) -> Arc<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let proxy = Arc::new(Proxy { endpoint, state: Arc::default(), launches: Arc::default(), moto: moto.endpoint().to_string() });
        let serving = proxy.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = serving.clone();
                std::thread::spawn(move || serving.serve(stream));
            }
        });
        proxy
    }

    /// `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.endpoint)
    }

    /// The next call of this action meets this; several wait in their order.
    pub fn next(&self, action: &str, fault: Fault) {
        self.with(|s| s.faults.push_back((action.to_string(), fault)));
    }

    /// Faults that have not been met.
    pub fn unmet(&self) -> usize {
        self.with(|s| s.faults.len())
    }

    /// All goes well from now on.
    pub fn forget(&self) {
        self.with(|s| s.faults.clear());
    }

    /// Idempotency tokens are forgotten, as EC2 does in time.
    pub fn forget_tokens(&self) {
        self.with(|s| s.past.extend(std::mem::take(&mut s.launched).into_values()));
    }

    /// Each new instance is left out of so many listings.
    pub fn hide(&self, looks: u32) {
        self.with(|s| s.hide_looks = looks);
    }

    /// So many reservations on a page of a listing, at most.
    pub fn page(&self, max: usize) {
        self.with(|s| s.page_max = Some(max));
    }

    /// What is served to who gets `/file`.
    pub fn serve_file(&self, path: PathBuf) {
        self.with(|s| s.file = Some(path));
    }

    /// Machines are told this when they ask whether they are taken back; None: they are not.
    pub fn notice(&self, notice: Option<&str>) {
        self.with(|s| s.notice = notice.map(str::to_string));
    }

    /// Launches that were done.
    pub fn launched(&self) -> Vec<Launched> {
        self.with(|s| s.past.iter().chain(s.launched.values()).cloned().collect())
    }

    /// How often it was called so.
    pub fn calls(&self, action: &str) -> usize {
        self.with(|s| s.came.iter().filter(|(a, _)| a == action).count())
    }

    /// All calls that came, by their names.
    pub fn actions(&self) -> BTreeSet<String> {
        self.with(|s| s.came.iter().map(|(action, _)| action.clone()).collect())
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    fn serve(&self, mut stream: TcpStream) {
        let Some(got) = Call::read(&stream) else { return };
        if got.method != "POST" {
            let (status, body) = self.told(&got).map_or_else(|status| (status, Vec::new()), |body| (200, body));
            _ = Answer { status, body }.write(&mut stream);
            return;
        }
        let action = got.field("Action").unwrap_or_default();
        let fault = self.with(|s| {
            s.came.push((action.clone(), Instant::now()));
            let at = s.faults.iter().position(|(a, _)| *a == action)?;
            s.faults.remove(at).map(|(_, fault)| fault)
        });
        let answer = match fault {
            Some(Fault::Refuse(status, code)) => Some(Answer::error(status, code)),
            Some(Fault::LateArrival(time)) => {
                sleep(time);
                self.done(&action, &got)
            }
            Some(Fault::LateAnswer(time)) => {
                let answer = self.done(&action, &got);
                sleep(time);
                answer
            }
            Some(Fault::Then500) => self.done(&action, &got).map(|_| Answer::error(500, "InternalError")),
            Some(Fault::ThenCut) => {
                self.done(&action, &got);
                None
            }
            Some(Fault::Twice) => {
                self.done(&action, &got);
                self.done(&action, &got)
            }
            None => self.done(&action, &got),
        };
        if let Some(answer) = answer {
            _ = answer.write(&mut stream);
        }
    }

    /// What a machine is told; else the status that says why not.
    fn told(&self, got: &Call) -> Result<Vec<u8>, u16> {
        let header = |name: &str| got.headers.get(name).map(String::as_str);
        match (got.method.as_str(), got.path.as_str()) {
            ("GET", "/file") => self.with(|s| s.file.clone()).and_then(|path| std::fs::read(path).ok()).ok_or(404),
            ("PUT", "/latest/api/token") if header("x-aws-ec2-metadata-token-ttl-seconds").is_some() => Ok(SESSION.into()),
            ("GET", "/latest/meta-data/spot/instance-action") if header("x-aws-ec2-metadata-token") == Some(SESSION) => {
                self.with(|s| s.notice.clone()).map(String::into_bytes).ok_or(404)
            }
            ("GET", "/latest/meta-data/spot/instance-action") => Err(401),
            _ => Err(404),
        }
    }

    fn done(&self, action: &str, got: &Call) -> Option<Answer> {
        match action {
            "RunInstances" => self.launch(got),
            "DescribeInstances" => self.listed(got),
            _ => call(&self.moto, got),
        }
    }

    fn launch(&self, got: &Call) -> Option<Answer> {
        let _one = self.launches.lock().unwrap();
        let fields = got.fields();
        let token = fields.get("ClientToken").cloned().unwrap_or_default();
        if let Some(before) = self.with(|s| s.launched.get(&token).cloned()) {
            if before.fields != fields {
                return Some(Answer::error(400, "IdempotentParameterMismatch"));
            }
            let now = call(&self.moto, &form("DescribeInstances", &[("InstanceId.1", &before.id)]))?.text();
            let gone = first(&now, "instanceState").is_some_and(|state| state.contains("terminated"));
            return Some(if gone { Answer::error(400, "IdempotentInstanceTerminated") } else { before.answer });
        }
        let answer = call(&self.moto, got)?;
        if answer.status == 200 {
            let id = first(&answer.text(), "instanceId")?;
            self.with(|s| {
                s.hidden.insert(id.clone(), s.hide_looks);
                s.launched.insert(token, Launched { id, fields, answer: answer.clone() });
            });
        }
        Some(answer)
    }

    /// A page of what is listed by now.
    fn listed(&self, got: &Call) -> Option<Answer> {
        let mut whole = got.clone();
        // Pages are made here.
        let mut fields = got.fields();
        let from: usize = fields.remove("NextToken").and_then(|token| token.parse().ok()).unwrap_or(0);
        fields.remove("MaxResults");
        let pairs: Vec<(&str, &str)> =
            fields.iter().filter(|(k, _)| !matches!(k.as_str(), "Action" | "Version")).map(|(k, v)| (k.as_str(), v.as_str())).collect();
        whole.body = form("DescribeInstances", &pairs).body;
        let answer = call(&self.moto, &whole)?;
        if answer.status != 200 {
            return Some(answer);
        }
        let hidden: BTreeSet<String> = self.with(|s| {
            let hidden = s.hidden.iter().filter(|(_, looks)| **looks > 0).map(|(id, _)| id.clone()).collect();
            s.hidden.values_mut().for_each(|looks| *looks = looks.saturating_sub(1));
            hidden
        });
        let text = answer.text();
        let set = first(&text, "reservationSet").unwrap_or_default();
        let items: Vec<String> = all(&set, "item").into_iter().filter(|item| !hidden.iter().any(|id| item.contains(id))).collect();
        let max = self.with(|s| s.page_max).unwrap_or(usize::MAX);
        let page: String = items.iter().skip(from).take(max).map(|item| format!("<item>{item}</item>")).collect();
        let next = from.saturating_add(max);
        let token = if next < items.len() { format!("<nextToken>{next}</nextToken>") } else { String::new() };
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15\">\
             <reservationSet>{page}</reservationSet>{token}</DescribeInstancesResponse>"
        );
        Some(Answer { status: 200, body: body.into_bytes() })
    }
}
