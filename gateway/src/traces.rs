//! Spans for an OpenTelemetry collector on this machine (OTLP over gRPC): one for each job at each site, from its coming to its end there.
//!
//! A span's id follows from site and job, so each site names the span above its own without a word on the wire: the spans of a job's sites make a tree, and
//! its root hangs below the span of the client's TRACEPARENT. What comes back to a site after it had ended there is a span of its own below the first. Spans of
//! jobs that were open when a site stopped are lost, and nobody waits for a collector: what it does not take in time is dropped.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use intergrid_proto::link::{Hop, Kind};
use intergrid_proto::{Refusal, SiteId};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor};

use crate::core::steps::{Line, Step};

/// Jobs whose spans are open; those beyond are not traced.
const OPEN_MAX: usize = 65_536;
/// Spans that wait to be sent.
const QUEUE_MAX: usize = 4_096;
/// One call to the collector.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The last spans have so long when the site stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends spans.
pub struct Traces {
    site: SiteId,
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    open: HashMap<u64, (SystemTime, bool)>,
}

impl Traces {
    /// Send them there. Inside a tokio runtime. Nothing is dialled before the first span.
    pub fn new(collector: SocketAddr, me: &Hop) -> Result<Traces, Refusal> {
        let builder = SpanExporter::builder().with_tonic().with_endpoint(format!("http://{collector}")).with_timeout(EXPORT_TIMEOUT);
        let exporter = builder.build().map_err(|e| Refusal::invalid(format!("traces to {collector}: {e}")))?;
        let config = BatchConfigBuilder::default().with_max_queue_size(QUEUE_MAX).build();
        let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
        let attributes = [
            KeyValue::new("service.name", format!("intergrid-{}", if me.kind == Kind::Broker { "broker" } else { "gateway" })),
            KeyValue::new("service.instance.id", me.site.to_string()),
        ];
        let attributes = attributes.into_iter().chain([KeyValue::new("intergrid.site", me.name.clone())]);
        processor.set_resource(&Resource::builder_empty().with_attributes(attributes).build());
        let scope = InstrumentationScope::builder("intergrid").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Traces { site: me.site, processor, scope, open: HashMap::new() })
    }

    /// A job's step. `line`: what is known of it now; asked for at the end alone.
    pub fn step(&mut self, job: u64, step: &Step, line: impl FnOnce() -> Option<Line>) {
        match step {
            Step::Accepted | Step::Placed { .. } if self.open.len() < OPEN_MAX => {
                self.open.entry(job).or_insert((SystemTime::now(), matches!(step, Step::Accepted)));
            }
            Step::Accepted | Step::Placed { .. } => {}
            Step::Ended => {
                if let (Some((since, is_first)), Some(line)) = (self.open.remove(&job), line())
                    && let Some(span) = self.span(&line, since, is_first)
                {
                    self.processor.on_end(span);
                }
            }
        }
    }

    fn span(&self, line: &Line, start_time: SystemTime, is_first: bool) -> Option<SpanData> {
        let (trace, client, is_sampled) = traceparent(&line.trace_parent)?;
        let end_time = SystemTime::now();
        let first = span_id(self.site, line, None);
        let (id, above) = match (is_first, line.from) {
            (false, _) => (span_id(self.site, line, Some(start_time)), first),
            (true, Some(parent)) => (first, span_id(parent, line, None)),
            (true, None) => (first, client),
        };
        let attributes = [("intergrid.job", &line.job), ("intergrid.origin_job", &line.origin), ("intergrid.principal", &line.principal)];
        is_sampled.then(|| SpanData {
            span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: above,
            parent_span_is_remote: is_first,
            span_kind: SpanKind::Server,
            name: "job".into(),
            start_time,
            end_time,
            attributes: attributes.into_iter().chain([("intergrid.end", &line.what)]).map(|(k, v)| KeyValue::new(k, v.clone())).collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: if line.failed { Status::error(line.what.clone()) } else { Status::Unset },
            instrumentation_scope: self.scope.clone(),
        })
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(e) = self.processor.shutdown_with_timeout(CLOSE_TIMEOUT) {
            tracing::warn!("the last traces were not taken: {e}");
        }
    }
}

/// Trace, span and whether it is sampled, of a traceparent that was checked when it came.
fn traceparent(text: &str) -> Option<(TraceId, SpanId, bool)> {
    let mut parts = text.split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let span = SpanId::from_hex(parts.next()?).ok()?;
    let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
    Some((trace, span, flags & 1 == 1))
}

/// Of a job at a site: the same wherever it is worked out.
fn span_id(site: SiteId, line: &Line, again: Option<SystemTime>) -> SpanId {
    let mut h = blake3::Hasher::new();
    h.update(&site.0).update(&line.origin_site.0).update(line.origin.as_bytes());
    if let Some(t) = again.and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok()) {
        h.update(&t.as_nanos().to_be_bytes());
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&h.finalize().as_bytes()[..8]);
    SpanId::from_bytes(bytes)
}
