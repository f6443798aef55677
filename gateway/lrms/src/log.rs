//! The log of submissions: what was going to be given to the LRMS is durable before it is. One JSON object a line; a torn last line is cut, and nothing is
//! written behind one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use intergrid_gateway::durable::{sync_dir, write_atomic};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::books::Intent;
use crate::lrms::LrmsId;

/// One line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Note {
    /// The format; the first line.
    Version(u32),
    /// It is going to be submitted.
    Begun(Intent),
    /// It was taken, as this job.
    Sent(String, u64),
    /// Nothing is left of it.
    Over(String),
}

/// The format that is written.
const VERSION: u32 = 2;

/// What was not over: intents, and the jobs they became.
pub type Open = Vec<(Intent, Vec<LrmsId>)>;

/// The log, open.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    /// Bytes of notes that are whole.
    whole: u64,
    /// Part of a note that failed may stand behind them.
    is_torn: bool,
}

impl Log {
    /// Read what is there, and begin anew with what is not over: intents and the jobs they became.
    pub fn open(path: &Path) -> io::Result<(Log, Open)> {
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        let mut open: Open = Vec::new();
        // What has no end of line was being written when the power went.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        for (n, line) in whole.lines().enumerate() {
            let bad = |why: String| io::Error::other(format!("{}:{}: {why}; use the version that wrote it, or mend the disk", path.display(), n + 1));
            let value = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
            match serde_json::from_value(of_format_1(value)).map_err(|e| bad(e.to_string()))? {
                Note::Version(1 | VERSION) => {}
                Note::Version(other) => return Err(bad(format!("format {other}, this version knows {VERSION}"))),
                Note::Begun(intent) => open.push((intent, Vec::new())),
                Note::Sent(tag, id) => open.iter_mut().filter(|(i, _)| i.tag == tag).for_each(|(_, ids)| ids.push(LrmsId(id))),
                Note::Over(tag) => open.retain(|(i, _)| i.tag != tag),
            }
        }
        let mut fresh = line(&Note::Version(VERSION))?;
        for (intent, ids) in &open {
            fresh.extend(line(&Note::Begun(intent.clone()))?);
            for id in ids {
                fresh.extend(line(&Note::Sent(intent.tag.clone(), id.0))?);
            }
        }
        write_atomic(path, &fresh)?;
        sync_dir(intergrid_gateway::durable::parent(path))?;
        let file = OpenOptions::new().append(true).open(path)?;
        Ok((Log { file, path: path.to_path_buf(), whole: fresh.len() as u64, is_torn: false }, open))
    }

    /// Durable on return.
    pub fn begin(&mut self, intent: Intent) -> io::Result<()> {
        self.append(&Note::Begun(intent), File::sync_data)
    }

    /// What is lost of these, is found again.
    pub fn note(&mut self, note: &Note) -> io::Result<()> {
        self.append(note, |_| Ok(()))
    }

    /// The whole note, or nothing of it. What a full disk took of one that failed is cut off before the next is written; where it can't be, nothing is.
    fn append(&mut self, note: &Note, sync: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
        let bytes = line(note)?;
        let named = |e| io::Error::other(format!("{}: {e}", self.path.display()));
        if self.is_torn {
            self.file.set_len(self.whole).map_err(named)?;
        }
        self.is_torn = true;
        self.file.write_all(&bytes).and_then(|()| sync(&self.file)).map_err(named)?;
        (self.is_torn, self.whole) = (false, self.whole + bytes.len() as u64);
        Ok(())
    }
}

/// In format 1 all tasks of a submission are of one placement, whose number stands beside their indices.
fn of_format_1(mut line: Value) -> Value {
    if let Some(begun) = line.get_mut("begun")
        && let Some(number) = begun.get("number").and_then(Value::as_u64)
        && let Some(tasks) = begun.get_mut("tasks").and_then(Value::as_array_mut)
    {
        tasks.iter_mut().for_each(|index| *index = json!([number, index.take()]));
    }
    line
}

fn line(note: &Note) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(note)?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_over_comes_back_and_a_torn_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("submissions");
        let intent =
            |tag: &str| Intent { tag: tag.into(), queue: "q".into(), account: None, principal: "p".into(), tasks: vec![(7, 1), (8, 5)], slots: 1 };
        let (mut log, open) = Log::open(&path).unwrap();
        assert!(open.is_empty());
        log.begin(intent("a")).unwrap();
        log.begin(intent("b")).unwrap();
        log.note(&Note::Sent("b".into(), 9)).unwrap();
        log.note(&Note::Over("a".into())).unwrap();
        for _ in 0..2 {
            assert_eq!(vec![(intent("b"), vec![LrmsId(9)])], Log::open(&path).unwrap().1);
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(b"{\"begun\":{\"tag\":\"c").unwrap();
        }
        let old = r#"{"begun":{"tag":"o","queue":"q","account":null,"principal":"p","number":7,"tasks":[1,5],"slots":1}}"#;
        std::fs::write(&path, format!("{{\"version\":1}}\n{old}\n{{\"sent\":[\"o\",3]}}\n")).unwrap();
        for _ in 0..2 {
            assert_eq!(vec![(Intent { tasks: vec![(7, 1), (7, 5)], ..intent("o") }, vec![LrmsId(3)])], Log::open(&path).unwrap().1);
        }
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("{\"version\":2}\n"), "an older program must not read it");
        std::fs::write(&path, "{\"version\":9}\n").unwrap();
        assert!(Log::open(&path).unwrap_err().to_string().contains("format 9"));
    }
}
