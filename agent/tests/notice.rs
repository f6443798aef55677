//! A machine that its provider takes back. The metadata service is the test's own: it can be had on the provider's machines only.

mod pool;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use intergrid_proto::{Exit, Phase};
use pool::{Gateway, sh};

/// As IMDSv2: nothing is told without a token.
fn metadata(taken_back: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines: Vec<String> = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
            let has = |header: &str| lines.iter().any(|l| l.eq_ignore_ascii_case(header));
            let (status, body) = match lines.first().map(String::as_str) {
                Some("PUT /latest/api/token HTTP/1.1") if has("x-aws-ec2-metadata-token-ttl-seconds: 21600") => ("200 OK", "t0ken"),
                Some("GET /latest/meta-data/spot/instance-action HTTP/1.1") => match (has("x-aws-ec2-metadata-token: t0ken"), &taken_back) {
                    (true, yes) if yes.load(Ordering::SeqCst) => ("200 OK", "{\"action\": \"terminate\", \"time\": \"2026-11-21T08:22:00Z\"}"),
                    (true, _) => ("404 Not Found", ""),
                    (false, _) => ("401 Unauthorized", ""),
                },
                _ => ("400 Bad Request", ""),
            };
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_taken_back_begins_nothing_new_and_says_why() {
    let taken_back = Arc::new(AtomicBool::new(false));
    let port = metadata(taken_back.clone());
    let g = Gateway::new().await;
    let _agent = g.agent(&format!("slots = 1\nnotices = \"http://127.0.0.1:{port}\""));
    g.attached().await;
    let stop = g.dir.path().join("stop");
    g.place(1, 0..1, &sh(&format!("while ! test -e {}; do sleep 0.05; done; exit 3", stop.display())));
    g.until("it runs", |k| k.hinted(1, Phase::Running)).await;
    assert!(!g.lock().shares[0].draining);
    taken_back.store(true, Ordering::SeqCst);
    g.until("it is told", |k| {
        k.shares[0].draining && k.shares[0].draining_reason.contains("takes this machine back: terminate at 2026-11-21T08:22:00Z")
    })
    .await;
    g.place(2, 0..1, &sh("true"));
    g.until("it goes back", |k| k.gave_back(2)).await;
    std::fs::write(&stop, "").unwrap();
    let e = g.end(1, 0).await;
    assert_eq!((Phase::Failed, Exit::Code(3)), (e.phase, e.exit_at(0)), "what ran has ended as ever");
}
