//! A client of any site: the generated one with the few calls that most tests make, answered as values or refusals.

use std::time::Duration;

use intergrid_proto::limits::MESSAGE_BYTES_MAX;
use intergrid_proto::link::WantValue;
use intergrid_proto::net::{Identity, client, refusal_of};
use intergrid_proto::pb::grid_client::GridClient;
use intergrid_proto::{BlobHash, JobSpec, Phase, Refusal, pb};
use tokio::time::timeout;
use tonic::transport::Channel;

/// One call takes no longer; a job that is waited for neither.
const CALL: Duration = Duration::from_secs(20);

/// A caller.
#[derive(Clone)]
pub struct Client {
    /// All other calls.
    pub grid: GridClient<Channel>,
    /// For other services of the same site.
    pub channel: Channel,
}

/// A job as people name it.
pub fn by_id(id: &str) -> Option<pb::JobRef> {
    Some(pb::JobRef { what: Some(pb::job_ref::What::Id(id.to_string())) })
}

/// A job as the parent that placed it names it.
pub fn placed(number: u64) -> Option<pb::JobRef> {
    Some(pb::JobRef { what: Some(pb::job_ref::What::Placed(number)) })
}

/// About one job.
pub fn about(job: Option<pb::JobRef>) -> pb::JobRequest {
    pb::JobRequest { job, ..Default::default() }
}

/// A right submission.
pub fn submission(key: &str, spec: &JobSpec, tasks: u32) -> pb::SubmitRequest {
    let spec = spec.encode();
    pb::SubmitRequest { key: key.to_string(), spec_hash: BlobHash::of(&spec).0.to_vec(), spec, tasks, ..Default::default() }
}

/// Tasks of a view in this phase.
pub fn count(view: &pb::JobView, phase: Phase) -> u64 {
    view.counts.iter().filter(|c| c.phase == phase as i32).map(|c| c.tasks).sum()
}

/// Wait for an answer; what is late panics.
pub async fn answer<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, Refusal> {
    let answer = timeout(CALL, call).await.unwrap_or_else(|_| panic!("no answer within {CALL:?}"));
    answer.map(tonic::Response::into_inner).map_err(|s| refusal_of(&s))
}

impl Client {
    /// Connect; the server's certificate has to be of this CA.
    pub async fn connect(endpoint: &str, identity: &Identity, ca_pem: &[u8]) -> Result<Self, Refusal> {
        let (channel, ..) = client::connect(endpoint, identity, ca_pem, None).await?;
        // Larger messages than are allowed can be sent: it is the site that has to refuse them.
        let grid = GridClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(usize::MAX);
        Ok(Client { grid, channel })
    }

    /// The id of a submitted job, and whether it was there before.
    pub async fn submit(&self, key: &str, spec: &JobSpec, tasks: u32) -> Result<(String, bool), Refusal> {
        self.send(submission(key, spec, tasks)).await
    }

    /// Any submission.
    pub async fn send(&self, request: pb::SubmitRequest) -> Result<(String, bool), Refusal> {
        answer(self.grid.clone().submit(request)).await.map(|r| (r.job, r.existed))
    }

    /// A job's view.
    pub async fn show(&self, job: &str) -> Result<pb::JobView, Refusal> {
        answer(self.grid.clone().show(about(by_id(job)))).await
    }

    /// Watch a job to its end; the last view.
    pub async fn ended(&self, job: &str) -> pb::JobView {
        let mut views = answer(self.grid.clone().watch(about(by_id(job)))).await.expect("a watch");
        let mut last = None;
        let watched = async {
            while let Some(view) = views.message().await.expect("views") {
                last = Some(view);
            }
        };
        if timeout(CALL, watched).await.is_err() {
            let explained = self.explain(job).await;
            panic!("job {job} has not ended within {CALL:?}: {last:#?}\n{explained:#?}");
        }
        last.expect("a view")
    }

    /// Submit, and wait until every task is done.
    pub async fn run(&self, key: &str, spec: &JobSpec, tasks: u32) -> String {
        let (job, _) = self.submit(key, spec, tasks).await.expect("a job");
        let view = self.ended(&job).await;
        assert_eq!(u64::from(tasks), count(&view, Phase::Done), "{view:?}");
        job
    }

    /// Wish something of all tasks of a job.
    pub async fn want(&self, job: &str, value: WantValue) -> Result<u64, Refusal> {
        let request = pb::SetWantRequest { job: by_id(job), value: pb::WantValue::from(value).into(), tasks: None };
        answer(self.grid.clone().set_want(request)).await.map(|r| r.tasks)
    }

    /// Why.
    pub async fn explain(&self, job: &str) -> Result<pb::Explanation, Refusal> {
        answer(self.grid.clone().explain(about(by_id(job)))).await
    }

    /// All entries of a job's history.
    pub async fn history(&self, job: &str) -> Vec<pb::HistoryEntry> {
        let mut batches = answer(self.grid.clone().history(about(by_id(job)))).await.expect("a history");
        let mut entries = Vec::new();
        while let Some(batch) = timeout(CALL, batches.message()).await.expect("in time").expect("history") {
            entries.extend(batch.entries);
        }
        entries
    }

    /// An output of a task, its hash and size verified.
    pub async fn output(&self, job: &str, task: u32, name: &str) -> Result<Vec<u8>, Refusal> {
        let request = pb::OutputRequest { job: by_id(job), task, name: name.to_string() };
        let mut parts = answer(self.grid.clone().get_output(request)).await?;
        let mut next = async || timeout(CALL, parts.message()).await.expect("in time").map_err(|s| refusal_of(&s));
        let head = next().await?.expect("a first part");
        let mut bytes = Vec::new();
        while let Some(part) = next().await? {
            bytes.extend_from_slice(&part.data);
        }
        assert_eq!((head.size, head.hash), (bytes.len() as u64, BlobHash::of(&bytes).0.to_vec()));
        Ok(bytes)
    }

    /// The tree.
    pub async fn hosts(&self) -> Result<pb::Host, Refusal> {
        answer(self.grid.clone().hosts(pb::HostsRequest::default())).await
    }
}
