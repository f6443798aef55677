//! What a collector of OpenTelemetry gets: one trace through all sites of a job.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use intergrid_gateway::config::SiteConfig;
use intergrid_proto::JobSpec;
use intergrid_tests::grid::{Grid, at, machines};
use intergrid_tests::until;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tonic::{Request, Response, Status};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: &str = "00f067aa0ba902b7";

/// A span as it was received: site, id, the span above, and how it ended.
#[derive(Clone, Debug, PartialEq)]
struct Received {
    site: String,
    trace: String,
    id: String,
    above: String,
    end: String,
    is_error: bool,
}

/// The protocol's own service, as a collector has it.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Received>>>);

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|a| a.key == key).and_then(|a| a.value.as_ref()).and_then(|v| v.value.as_ref());
    match value {
        Some(Value::StringValue(s)) => s.clone(),
        other => panic!("{key}: {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let site = text(&resource.resource.expect("a resource").attributes, "intergrid.site");
            for span in resource.scope_spans.into_iter().flat_map(|s| s.spans) {
                let (trace, id, above) = (hex(&span.trace_id), hex(&span.span_id), hex(&span.parent_span_id));
                assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
                let (end, is_error) = (text(&span.attributes, "intergrid.end"), span.status.is_some_and(|s| s.code == 2));
                self.0.lock().unwrap().push(Received { site: site.clone(), trace, id, above, end, is_error });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (SocketAddr, Collector) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, collector) = (listener.local_addr().unwrap(), Collector::default());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone())).serve_with_incoming(incoming));
    (address, collector)
}

fn traced(config: SiteConfig, traces: SocketAddr) -> SiteConfig {
    SiteConfig { traces: Some(traces), ..config }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_one_trace_with_a_span_at_each_site() {
    let (grid, (address, collector)) = (Grid::new(), collector().await);
    let campus = grid.gateway_of(traced(grid.config("campus", &["root"]), address), machines("m", 1, 2)).await;
    let mut config = grid.broker_config("root", &[], &[at(&campus)]);
    config.site = traced(config.site, address);
    let root = grid.broker_of(config).await;
    let ann = grid.user(&root, "ann").await;
    let flags = [("01", "sampled"), ("00", "not sampled")];
    for (flag, key) in flags {
        let spec = JobSpec { trace_parent: format!("00-{TRACE}-{CLIENT}-{flag}"), ..JobSpec::new(["false"]) };
        let (job, _) = ann.submit(key, &spec, 1).await.unwrap();
        ann.ended(&job).await;
    }
    let spans = until("a span of each site", async || {
        let mut spans = collector.0.lock().unwrap().clone();
        spans.sort_by(|a, b| a.site.cmp(&b.site));
        if spans.len() >= 2 { Ok(spans) } else { Err(spans) }
    })
    .await;
    let [below, above] = &spans[..] else { panic!("what is not sampled is not sent: {spans:?}") };
    assert_eq!(("campus", "root"), (below.site.as_str(), above.site.as_str()));
    assert!(spans.iter().all(|s| s.trace == TRACE && s.end == "ended here: failed 1" && s.is_error), "{spans:?}");
    assert_eq!((CLIENT, above.id.as_str()), (above.above.as_str(), below.above.as_str()), "each below the one that it came from");
    assert_ne!(above.id, below.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_stops_nobody() {
    let grid = Grid::new();
    let campus = grid.gateway_of(traced(grid.config("campus", &[]), "127.0.0.1:9".parse().unwrap()), machines("m", 1, 2)).await;
    let ann = grid.user(&campus, "ann").await;
    ann.run("key", &JobSpec::new(["true"]), 100).await;
    tokio::time::timeout(std::time::Duration::from_secs(20), campus.stop()).await.expect("it stops in time");
}
