//! What running tasks have printed, asked of their agents: a question to the agent's open stream, one answer, or none in time.
//!
//! Nothing is kept: who follows a task says how much it has. Questions of one agent that wait are bounded, and so is an answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_proto::{Refusal, RefusalKind, SiteId, pb};
use tokio::sync::{mpsc, oneshot};
use tonic::Streaming;

use crate::backend::Peek;

/// Questions of one agent without an answer.
const QUESTIONS_MAX: usize = 64;

/// All agents' open questions.
#[derive(Clone, Default)]
pub struct Asked(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    agents: BTreeMap<SiteId, Agent>,
    numbers: u64,
}

struct Agent {
    stream: u64,
    questions: mpsc::Sender<pb::PeekQuestion>,
    waiting: BTreeMap<u64, oneshot::Sender<pb::PeekReply>>,
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An agent can be asked, until its answers end. Its questions come out of what is returned.
    pub fn open(&self, agent: SiteId, mut answers: Streaming<pb::PeekAnswer>) -> mpsc::Receiver<pb::PeekQuestion> {
        let (questions, out) = mpsc::channel(QUESTIONS_MAX);
        let stream = {
            let mut state = self.lock();
            state.numbers += 1;
            let stream = state.numbers;
            state.agents.insert(agent, Agent { stream, questions, waiting: BTreeMap::new() });
            stream
        };
        let asked = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(pb::PeekAnswer { id, reply })) = answers.message().await {
                let asks = asked.lock().agents.get_mut(&agent).filter(|a| a.stream == stream).and_then(|a| a.waiting.remove(&id));
                if let (Some(asks), Some(reply)) = (asks, reply) {
                    _ = asks.send(reply);
                }
            }
            let mut state = asked.lock();
            if state.agents.get(&agent).is_some_and(|a| a.stream == stream) {
                state.agents.remove(&agent);
            }
        });
        out
    }

    /// One question.
    pub fn ask(&self, agent: SiteId, what: Peek, deadline: Duration) -> BoxFuture<'static, Result<pb::PeekReply, Refusal>> {
        let asked = self.clone();
        async move {
            let (id, answer) = asked.put(agent, what)?;
            let _until_answered = Question { asked: &asked, agent, id };
            let silent = || Refusal::new(RefusalKind::Unavailable, format!("agent {agent} has not answered within {} ms", deadline.as_millis()));
            let reply = tokio::time::timeout(deadline, answer).await.map_err(|_| silent())?;
            reply.map_err(|_| Refusal::new(RefusalKind::Unavailable, format!("agent {agent} is gone")).remedy("ask again"))
        }
        .boxed()
    }

    fn put(&self, agent: SiteId, what: Peek) -> Result<(u64, oneshot::Receiver<pb::PeekReply>), Refusal> {
        let mut state = self.lock();
        state.numbers += 1;
        let id = state.numbers;
        let away = || Refusal::new(RefusalKind::Unavailable, format!("agent {agent} is not attached")).remedy("ask again");
        let there = state.agents.get_mut(&agent).ok_or_else(away)?;
        let Peek { number, task, attempt, stdout, stderr, .. } = what;
        there.questions.try_send(pb::PeekQuestion { id, number, task, attempt, stdout, stderr }).map_err(|_| {
            Refusal::new(RefusalKind::Unavailable, format!("{QUESTIONS_MAX} questions wait for agent {agent}")).remedy("ask again, less often")
        })?;
        let (answer, reply) = oneshot::channel();
        there.waiting.insert(id, answer);
        Ok((id, reply))
    }
}

/// Forgotten when nobody waits for its answer.
struct Question<'a> {
    asked: &'a Asked,
    agent: SiteId,
    id: u64,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if let Some(agent) = self.asked.lock().agents.get_mut(&self.agent) {
            agent.waiting.remove(&self.id);
        }
    }
}
