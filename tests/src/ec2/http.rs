//! As much of HTTP, and of EC2's forms and answers, as a test needs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A request.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `POST`, `/`.
    pub method: String,
    /// Path.
    pub path: String,
    /// Headers, with small names.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Of HTTP.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// EC2's way to say no.
    pub fn error(status: u16, code: &str) -> Answer {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{code}</Code><Message>said by the test</Message></Error></Errors>\
             <RequestID>00000000-0000-0000-0000-000000000000</RequestID></Response>"
        );
        Answer { status, body: body.into_bytes() }
    }

    pub(super) fn write(&self, to: &mut TcpStream) -> std::io::Result<()> {
        let head =
            format!("HTTP/1.1 {} -\r\ncontent-type: text/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", self.status, self.body.len());
        to.write_all(&[head.as_bytes(), &self.body].concat())?;
        to.flush()
    }
}

impl Call {
    /// A field of its form.
    pub fn field(&self, name: &str) -> Option<String> {
        self.fields().remove(name)
    }

    /// Its form.
    pub fn fields(&self) -> BTreeMap<String, String> {
        let text = String::from_utf8_lossy(&self.body).into_owned();
        text.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (decoded(k), decoded(v))).collect()
    }

    pub(super) fn read(from: &TcpStream) -> Option<Call> {
        let mut reader = BufReader::new(from);
        let first = line(&mut reader)?;
        let mut words = first.split(' ');
        let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
        let headers = headers(&mut reader)?;
        let mut body = vec![0; headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        Some(Call { method, path, headers, body })
    }
}

/// A call of EC2's, as a form.
pub fn form(action: &str, more: &[(&str, &str)]) -> Call {
    form_of("ec2", action, more)
}

/// A call of this service, as a form.
pub(super) fn form_of(service: &str, action: &str, more: &[(&str, &str)]) -> Call {
    let pairs = [("Action", action), ("Version", "2016-11-15")].into_iter().chain(more.iter().copied());
    let body: Vec<String> = pairs.map(|(k, v)| format!("{}={}", encoded(k), encoded(v))).collect();
    // For a server that looks at the region and the service only.
    let signed = format!("AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/{service}/aws4_request, SignedHeaders=host, Signature=0");
    let headers = [("authorization", signed.as_str()), ("content-type", "application/x-www-form-urlencoded")];
    let headers = headers.map(|(k, v)| (k.to_string(), v.to_string()));
    Call { method: "POST".into(), path: "/".into(), headers: headers.into(), body: body.join("&").into_bytes() }
}

/// Make a call; None: no answer that can be read.
pub fn call(endpoint: &str, call: &Call) -> Option<Answer> {
    let mut stream = TcpStream::connect_timeout(&endpoint.parse().ok()?, CONNECT_TIMEOUT).ok()?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).ok()?;
    let mut head =
        format!("{} {} HTTP/1.1\r\nhost: {endpoint}\r\nconnection: close\r\ncontent-length: {}\r\n", call.method, call.path, call.body.len());
    for (name, value) in call.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "host" | "connection" | "content-length")) {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(&[head.as_bytes(), b"\r\n", &call.body].concat()).ok()?;
    let mut reader = BufReader::new(stream);
    let status = line(&mut reader)?.split(' ').nth(1)?.parse().ok()?;
    let headers = headers(&mut reader)?;
    let mut body = Vec::new();
    match headers.get("content-length").and_then(|n| n.parse().ok()) {
        Some(length) => {
            body.resize(length, 0);
            reader.read_exact(&mut body).ok()?;
        }
        None => _ = reader.read_to_end(&mut body).ok()?,
    }
    Some(Answer { status, body })
}

/// What stands between the outermost of these tags, each time.
pub fn all(xml: &str, tag: &str) -> Vec<String> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let (mut found, mut rest) = (Vec::new(), xml);
    while let Some(at) = rest.find(&open) {
        let inner = &rest[at + open.len()..];
        let (mut depth, mut end) = (1, 0);
        while depth > 0 {
            let (next_open, next_close) = (inner[end..].find(&open), inner[end..].find(&close).expect("tags are closed"));
            match next_open {
                Some(next) if next < next_close => (depth, end) = (depth + 1, end + next + open.len()),
                _ => (depth, end) = (depth - 1, end + next_close + close.len()),
            }
        }
        found.push(inner[..end - close.len()].to_string());
        rest = &inner[end..];
    }
    found
}

/// The first of them.
pub fn first(xml: &str, tag: &str) -> Option<String> {
    all(xml, tag).into_iter().next()
}

fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    Some(line.trim_end().to_string())
}

fn headers(reader: &mut impl BufRead) -> Option<BTreeMap<String, String>> {
    let mut headers = BTreeMap::new();
    loop {
        let line = line(reader)?;
        match line.split_once(':') {
            Some((name, value)) => _ = headers.insert(name.to_ascii_lowercase(), value.trim().to_string()),
            None => return Some(headers),
        }
    }
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(b) = rest.next() {
        bytes.push(match b {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                u8::from_str_radix(&String::from_utf8_lossy(&digits), 16).unwrap_or(b'?')
            }
            b => b,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn encoded(text: &str) -> String {
    text.bytes().map(|b| if b.is_ascii_alphanumeric() || b"-._~".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
