//! What all tasks of one spec have in common, worked out once: program, arguments, environment. Pure; the executor fills in a task's own part.

use std::ffi::CString;
use std::io;
use std::sync::{Arc, OnceLock};

use intergrid_agent_sys::CStrings;
use intergrid_proto::spec::{File, substitute};
use intergrid_proto::{BlobHash, JobSpec, Refusal};

/// Search path of tasks whose spec gives none.
pub const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";

/// Which GPUs a process sees: by NVIDIA's libraries, and by AMD's.
pub const GPU_VARIABLES: [&str; 2] = ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"];

/// A spec, ready to be run.
#[derive(Debug)]
pub struct Plan {
    /// Of its bytes.
    pub hash: BlobHash,
    /// Checked.
    pub spec: JobSpec,
    /// Where programs without '/' are searched.
    pub path: String,
    /// Has to be looked at per task, because `{i}` is in its arguments.
    varies: bool,
    /// Where the program was found.
    pub found: OnceLock<CString>,
}

/// One task of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The gateway's placement.
    pub number: u64,
    /// Its index.
    pub index: u32,
    /// This one included.
    pub attempt: u32,
    /// The job's id as its user knows it.
    pub job: Arc<str>,
    /// Tasks of the whole array.
    pub array_size: u32,
    /// Name of the gateway it runs for.
    pub site: Arc<str>,
}

impl Plan {
    /// From a spec's bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, Refusal> {
        let spec = JobSpec::decode(bytes)?;
        let path = spec.env.iter().find(|(n, _)| n == "PATH").map_or(PATH_DEFAULT, |(_, v)| v).to_string();
        let varies = spec.argv.iter().any(|a| a.contains("{i}"));
        Ok(Plan { hash: BlobHash::of(bytes), spec, path, varies, found: OnceLock::new() })
    }

    /// The program's name: the staged file, or the first argument.
    pub fn program(&self, index: u32) -> String {
        match &self.spec.executable {
            Some(file) => format!("./{}", file.name),
            None => substitute(self.spec.argv.first().map_or("", String::as_str), index),
        }
    }

    /// Does the program's name depend on the task?
    pub fn program_varies(&self) -> bool {
        self.spec.executable.is_none() && self.spec.argv.first().is_some_and(|a| a.contains("{i}"))
    }

    /// Files to have in the task's directory, and whether they are programs.
    pub fn files(&self) -> impl Iterator<Item = (&File, bool)> {
        self.spec.executable.iter().map(|f| (f, true)).chain(self.spec.inputs.iter().map(|f| (f, f.executable)))
    }

    /// Does nothing have to be fetched?
    pub fn is_bare(&self) -> bool {
        self.spec.executable.is_none() && self.spec.inputs.is_empty()
    }

    /// Fill in a task's arguments.
    pub fn argv(&self, index: u32, out: &mut CStrings) -> io::Result<()> {
        out.clear();
        for a in &self.spec.argv {
            if self.varies { out.push(&[substitute(a, index).as_bytes()])? } else { out.push(&[a.as_bytes()])? }
        }
        Ok(())
    }

    /// Fill in a task's whole environment. `directory` is its own, and so are the `gpus`, by name; None: the machine has none.
    pub fn env(&self, task: &Task, directory: &str, gpus: Option<&str>, out: &mut CStrings) -> io::Result<()> {
        out.clear();
        let mut put = |name: &str, value: &str| out.push(&[name.as_bytes(), b"=", value.as_bytes()]);
        let ours = [("PATH", PATH_DEFAULT), ("HOME", directory), ("TMPDIR", directory), ("LANG", "C.UTF-8")];
        for (name, value) in ours.iter().filter(|(n, _)| self.spec.env.iter().all(|(m, _)| m != n)) {
            put(name, value)?;
        }
        // Those of a machine that has some are seen only by tasks that asked for them.
        let is_ours = |name: &str| gpus.is_some() && GPU_VARIABLES.contains(&name);
        for (name, value) in self.spec.env.iter().filter(|(n, _)| !is_ours(n)) {
            put(name, &substitute(value, task.index))?;
        }
        for name in GPU_VARIABLES {
            gpus.map_or(Ok(()), |gpus| put(name, gpus))?;
        }
        if !self.spec.trace_parent.is_empty() && self.spec.env.iter().all(|(n, _)| n != "TRACEPARENT") {
            put("TRACEPARENT", &self.spec.trace_parent)?;
        }
        put("GRID_JOB_ID", &task.job)?;
        put("GRID_TASK_ID", &task.index.to_string())?;
        put("GRID_ATTEMPT", &task.attempt.to_string())?;
        put("GRID_SITE", &task.site)?;
        put("GRID_SLOTS", &self.spec.shape.slots.to_string())?;
        put("GRID_GPUS", &self.spec.shape.gpus.to_string())?;
        put("GRID_NODES", &self.spec.shape.nodes.to_string())?;
        put("GRID_TASK_COUNT", &task.array_size.to_string())?;
        // By this a process is found that was started just before the agent died: unique in the machine, and the payload's to read.
        put("GRID_TASK_DIR", directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tasks_own_part_is_filled_in() {
        let mut spec = JobSpec::new(["prog", "--tile={i}", "x"]);
        spec.env = vec![("A".into(), "v{i}".into()), ("HOME".into(), "/h".into()), ("CUDA_VISIBLE_DEVICES".into(), "9".into())];
        let plan = Plan::new(&spec.encode()).unwrap();
        let text = |s: &CStrings| s.iter().map(|s| s.to_str().unwrap().to_string()).collect::<Vec<_>>();
        let mut out = CStrings::default();
        plan.argv(7, &mut out).unwrap();
        assert_eq!(vec!["prog", "--tile=7", "x"], text(&out));
        let task = Task { number: 1, index: 7, attempt: 2, job: "abcdef".into(), array_size: 9, site: "campus".into() };
        let expected = |gpus: &str| {
            format!(
                "PATH=/usr/local/bin:/usr/bin:/bin TMPDIR=/d LANG=C.UTF-8 A=v7 HOME=/h {gpus} GRID_JOB_ID=abcdef GRID_TASK_ID=7 GRID_ATTEMPT=2 \
                 GRID_SITE=campus GRID_SLOTS=1 GRID_GPUS=0 GRID_NODES=1 GRID_TASK_COUNT=9 GRID_TASK_DIR=/d"
            )
        };
        for (gpus, seen) in [
            (None, "CUDA_VISIBLE_DEVICES=9"),
            (Some("1,3"), "CUDA_VISIBLE_DEVICES=1,3 ROCR_VISIBLE_DEVICES=1,3"),
            (Some(""), "CUDA_VISIBLE_DEVICES= ROCR_VISIBLE_DEVICES="),
        ] {
            plan.env(&task, "/d", gpus, &mut out).unwrap();
            assert_eq!(expected(seen), text(&out).join(" "));
        }
    }

    #[test]
    fn a_staged_program_is_in_the_directory() {
        let mut spec = JobSpec::new(["anything"]);
        spec.executable = Some(File { name: "render".into(), hash: BlobHash::of(b""), size: 0, executable: false });
        assert_eq!("./render", Plan::new(&spec.encode()).unwrap().program(0));
    }
}
