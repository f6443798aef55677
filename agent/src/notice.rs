//! The notice that a cloud gives before it takes a machine back: asked of the machine's metadata service, as EC2 has it (IMDSv2,
//! `latest/meta-data/spot/instance-action`; AWS gives it two minutes ahead and recommends to ask every 5 s).
//!
//! From the notice on nothing new is begun here, what waits goes back, and the gateway is told why. It does not end what runs: that has its two minutes.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How often it is asked.
const ASK_MS: u64 = 5_000;
/// An answer is there by then.
const ANSWER_MAX_MS: u64 = 2_000;
/// An answer is no longer, headers and all.
const ANSWER_BYTES_MAX: usize = 8_192;
/// A session with the service lasts so long; it is opened anew when it is refused.
const SESSION_S: &str = "21600";
const SESSION_PATH: &str = "/latest/api/token";
const NOTICE_PATH: &str = "/latest/meta-data/spot/instance-action";
/// Of what the service says, for people.
const WORD_CHARS_MAX: usize = 40;

/// A failure of one call: there will be another.
type Failure = Box<dyn std::error::Error + Send + Sync>;

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
        if status != 200 {
            return Err(format!("{SESSION_PATH}: status {status}").into());
        }
        // It goes into a header.
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("{SESSION_PATH}: the answer is not a token").into());
        }
        *session = Some(token);
    }
    let token = session.clone().unwrap_or_default();
    let (status, body) = call(at, "GET", NOTICE_PATH, ("x-aws-ec2-metadata-token", &token)).await?;
    match status {
        200 => Ok(Some(words(&body))),
        404 => Ok(None),
        other => {
            *session = None;
            Err(format!("{NOTICE_PATH}: status {other}").into())
        }
    }
}

/// One exchange of HTTP/1.1 on a connection of its own. By hand: a library's client is 2 % of an agent, for two calls without a body.
async fn call(at: &str, method: &str, path: &str, (name, value): (&str, &str)) -> Result<(u16, String), Failure> {
    let mut stream = TcpStream::connect(at).await?;
    let length = if method == "PUT" { "content-length: 0\r\n" } else { "" };
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {at}\r\n{name}: {value}\r\n{length}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut heard = Vec::new();
    loop {
        let is_over = stream.read_buf(&mut heard).await? == 0;
        if heard.len() > ANSWER_BYTES_MAX {
            return Err(format!("{path}: the answer is longer than {ANSWER_BYTES_MAX} bytes").into());
        }
        if let Some(answer) = answer(&heard, is_over).map_err(|what| format!("{path}: {what}"))? {
            return Ok(answer);
        }
    }
}

/// Status and body, as soon as all of it has been heard. A body is as long as is said, or ends with the connection; in chunks it is not understood.
fn answer(heard: &[u8], is_over: bool) -> Result<Option<(u16, String)>, &'static str> {
    let Some(end) = heard.windows(4).position(|w| w == b"\r\n\r\n") else {
        return if is_over { Err("the answer ended early") } else { Ok(None) };
    };
    let (head, body) = (String::from_utf8_lossy(&heard[..end]), &heard[end + 4..]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()).ok_or("the answer is not HTTP/1")?;
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>().map_err(|_| "the answer has no good length")?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("the answer comes in chunks");
        }
    }
    let body = match length {
        Some(length) if body.len() >= length => &body[..length],
        None if is_over => body,
        Some(_) if is_over => return Err("the answer ended early"),
        _ => return Ok(None),
    };
    Ok(Some((status, String::from_utf8_lossy(body).into_owned())))
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
    fn an_answer_is_taken_when_it_is_whole_and_in_no_other_form() {
        let whole = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-LENGTH: 5\r\n\r\nt0ken";
        for cut in 0..whole.len() {
            assert_eq!(Ok(None), answer(&whole[..cut], false), "{cut}");
            assert!(answer(&whole[..cut], true).is_err(), "{cut}");
        }
        let token = Ok(Some((200, "t0ken".to_string())));
        assert_eq!(token, answer(whole, false));
        assert_eq!(token, answer(&[whole, b"more".as_slice()].concat(), false));
        let to_the_end = b"HTTP/1.0 404 Not Found\r\n\r\ngone";
        assert_eq!((Ok(None), Ok(Some((404, "gone".to_string())))), (answer(to_the_end, false), answer(to_the_end, true)));
        for odd in [
            "\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1 OK\r\n\r\n",
            "HTTP/1.1 99999 x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nt\r\n0\r\n\r\n",
        ] {
            assert!(answer(odd.as_bytes(), true).is_err(), "{odd:?}");
        }
    }
}
