//! Small words of the command line, each parsed once into a type that cannot be wrong.

use std::path::{Path, PathBuf};

use intergrid_proto::limits::{NAME_BYTES_MAX, TASKS_PER_JOB_MAX};
use intergrid_proto::{Refusal, TaskSet, pb};

/// A job as users name it, with or without some of its tasks: `7k2m9p`, `7k`, `last`, `7k[3]`, `7k[0-9,12]`, `7k.3`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobName {
    /// Id, unique prefix, or `last`.
    pub id: String,
    /// None: all of them.
    pub tasks: Option<TaskSet>,
}

impl JobName {
    /// From the command line.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let bad = || {
            Refusal::invalid(format!("{text:?} is not a job"))
                .remedy("write its id, a prefix of it, or `last`; tasks like 7k2m9p[3] or 7k2m9p[0-9,12]")
        };
        let (id, tasks) = match (text.split_once('['), text.split_once('.')) {
            (Some((id, rest)), _) => (id, Some(rest.strip_suffix(']').ok_or_else(bad)?)),
            (None, Some((id, rest))) => (id, Some(rest)),
            (None, None) => (text, None),
        };
        if id.is_empty() || id.len() > NAME_BYTES_MAX || !id.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(bad());
        }
        let tasks = tasks.map(|t| tasks_of(t).ok_or_else(bad)).transpose()?;
        Ok(JobName { id: id.to_ascii_lowercase(), tasks })
    }

    /// Of all jobs on a command line.
    pub fn parse_all(texts: &[String]) -> Result<Vec<Self>, Refusal> {
        texts.iter().map(|t| Self::parse(t)).collect()
    }

    /// All tasks of a job.
    pub fn whole(id: &str) -> Self {
        JobName { id: id.to_owned(), tasks: None }
    }

    /// The same tasks of this job: a prefix or `last` may mean another job later, an id never does.
    pub fn of(&self, id: &str) -> Self {
        JobName { id: id.to_owned(), tasks: self.tasks.clone() }
    }

    /// For the wire.
    pub fn reference(&self) -> Option<pb::JobRef> {
        reference(&self.id)
    }

    /// For the wire.
    pub fn request(&self) -> pb::JobRequest {
        pb::JobRequest { job: self.reference(), tasks: self.tasks.as_ref().map(intergrid_proto::convert::tasks_out), deadline_ms: 0 }
    }
}

/// By id, prefix, or `last`.
pub fn reference(id: &str) -> Option<pb::JobRef> {
    Some(pb::JobRef { what: Some(pb::job_ref::What::Id(id.to_owned())) })
}

impl std::fmt::Display for JobName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.tasks {
            None => f.write_str(&self.id),
            Some(tasks) => write!(f, "{}[{tasks}]", self.id),
        }
    }
}

/// `3`, `0-9`, `0-9,12`.
fn tasks_of(text: &str) -> Option<TaskSet> {
    let mut tasks = TaskSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= TASKS_PER_JOB_MAX {
            return None;
        }
        tasks.insert(first..last + 1);
    }
    Some(tasks)
}

/// `0-63%8` of `--array`: tasks, and how many at a time.
pub fn array(text: &str) -> Result<(u32, Option<u32>), Refusal> {
    let bad = || Refusal::invalid(format!("--array {text:?} is not an array")).remedy("write it like 0-63, or 0-63%8 for at most 8 tasks at a time");
    let (range, at_once) = text.split_once('%').map_or((text, None), |(range, n)| (range, Some(n)));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u32, u32) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
    if first != 0 {
        return Err(bad().remedy("the tasks of an array are numbered from 0; `{i}` is the number"));
    }
    let at_once = at_once.map(|n| n.parse().ok().filter(|n| *n > 0).ok_or_else(bad)).transpose()?;
    Ok((last.saturating_add(1), at_once))
}

/// `K=V` of `--env`.
pub fn variable(text: &str) -> Result<(String, String), Refusal> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| Refusal::invalid(format!("--env {text:?} is not a variable with its value")).remedy("write it like NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// `F` or `F=NAME` of `--in`: a file here, and its name in the task's directory.
pub fn input(text: &str) -> Result<(PathBuf, String), Refusal> {
    // A file whose own name has a `=` wins over the split.
    let (path, name) = match text.rsplit_once('=') {
        Some((path, name)) if !path.is_empty() && !name.is_empty() && !Path::new(text).exists() => (PathBuf::from(path), Some(name.to_owned())),
        _ => (PathBuf::from(text), None),
    };
    let name = match name {
        Some(name) => name,
        None => file_name(&path).ok_or_else(|| Refusal::invalid(format!("--in {text:?} has no file name")).remedy("write it like FILE=NAME"))?,
    };
    intergrid_proto::spec::check_file_name("--in", &name)?;
    Ok((path, name))
}

/// The last part of a path, where it is text.
pub fn file_name(path: &Path) -> Option<String> {
    path.file_name().and_then(|n| n.to_str()).map(str::to_owned)
}

/// A program: staged from here, or the site's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Program {
    /// A file on this machine.
    Staged(PathBuf),
    /// A name or an absolute path that belongs to the site.
    Site,
}

/// `./prog` and `../prog` are staged, and so is anything under `--stage`; `prog` and `/bin/prog` belong to the site.
pub fn program(text: &str, stage: bool) -> Result<Program, Refusal> {
    if stage || text.starts_with("./") || text.starts_with("../") {
        return Ok(Program::Staged(PathBuf::from(text)));
    }
    if text.is_empty() {
        return Err(Refusal::invalid("the command is empty").remedy("name a program after --"));
    }
    if text.contains('/') && !text.starts_with('/') {
        let message = format!("{text:?} is neither a program of the site nor one to stage");
        return Err(Refusal::invalid(message).remedy(format!("write ./{text} to stage it, or an absolute path of the site")));
    }
    Ok(Program::Site)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_and_their_tasks() {
        let set = |tasks: &[u32]| tasks.iter().copied().collect::<TaskSet>();
        for (text, id, tasks) in [
            ("7k2m9p", "7k2m9p", None),
            ("LAST", "last", None),
            ("7k[3]", "7k", Some(set(&[3]))),
            ("7k.17", "7k", Some(set(&[17]))),
            ("7k[0-9,12]", "7k", Some(set(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12]))),
        ] {
            assert_eq!(Ok(JobName { id: id.into(), tasks }), JobName::parse(text), "{text}");
        }
        for text in ["", "[3]", "7k[", "7k[]", "7k[x]", "7k[3-1]", "7k[4294967295]", "7k.", "a/b", "7k[3]x"] {
            let refused = JobName::parse(text).expect_err(text);
            assert!(refused.message.contains("not a job") && !refused.remedy.is_empty(), "{refused}");
        }
        assert_eq!("7k2m9p[3]", JobName::parse("last[3]").map(|j| j.of("7k2m9p").to_string()).unwrap());
        assert_eq!("7k[0-9,12]", JobName::parse("7k[0-9,12]").map(|j| j.to_string()).unwrap());
    }

    #[test]
    fn variables() {
        assert_eq!(Ok(("A".into(), "b=c".into())), variable("A=b=c"));
        assert_eq!(Ok(("A".into(), "".into())), variable("A="));
        assert!(variable("A").is_err() && variable("=b").is_err());
    }

    #[test]
    fn inputs() {
        assert_eq!(Ok((PathBuf::from("data/a.csv"), "a.csv".into())), input("data/a.csv"));
        assert_eq!(Ok((PathBuf::from("data/a.csv"), "table".into())), input("data/a.csv=table"));
        for bad in ["", "/", "a=../b", "a=stdout", "a=x/y", ".."] {
            assert!(input(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn programs() {
        assert_eq!(Ok(Program::Site), program("hostname", false));
        assert_eq!(Ok(Program::Site), program("/bin/true", false));
        assert_eq!(Ok(Program::Staged("./render".into())), program("./render", false));
        assert_eq!(Ok(Program::Staged("/opt/render".into())), program("/opt/render", true));
        assert_eq!("write ./bin/render to stage it, or an absolute path of the site", program("bin/render", false).expect_err("relative").remedy);
    }
}
