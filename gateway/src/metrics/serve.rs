//! The page over HTTP/1.1: `GET /metrics`, and nothing else. One answer a connection.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use intergrid_proto::{Refusal, RefusalKind};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::Source;

/// Connections at once; one more waits.
const CONNECTIONS_MAX: usize = 8;
/// A connection, from its first byte to its last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// After a connection could not be taken (no file descriptor).
const PAUSE: Duration = Duration::from_millis(200);
/// Of the text format.
const FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Serve, until it is told to stop. Errors: the address can't be had.
pub async fn serve(address: SocketAddr, source: Source, mut stopped: watch::Receiver<bool>) -> Result<tokio::task::JoinHandle<()>, Refusal> {
    let refused = |e: std::io::Error| Refusal::new(RefusalKind::Unavailable, format!("metrics at {address}: {e}")).remedy("give another address");
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let at = listener.local_addr().map_err(refused)?;
    tracing::info!("metrics at http://{at}/metrics");
    Ok(tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                _ = stopped.wait_for(|s| *s) => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let source = source.clone();
            tokio::spawn(async move {
                let _until_done = place;
                let answering = service_fn(|request| answer(request, &source));
                let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), answering);
                // Who is too slow, or speaks something else, gets nothing.
                let _ = timeout(CONNECTION_TIMEOUT, connection).await;
            });
        }
    }))
}

async fn answer(request: Request<Incoming>, source: &Source) -> Result<Response<String>, Infallible> {
    let plain = |status: StatusCode, text: String| {
        let mut response = Response::new(text);
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, FORMAT);
        response
    };
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match source.text().await {
            Ok(page) => plain(StatusCode::OK, page),
            Err(r) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{r}\n")),
        },
        (&Method::GET, _) => plain(StatusCode::NOT_FOUND, "the numbers are at /metrics\n".into()),
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".into()),
    })
}
