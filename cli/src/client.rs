//! Where to ask, and as whom: the home directory, the connection, and calls that always end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use intergrid_proto::error::line_and_column;
use intergrid_proto::limits::{CALL_TIMEOUT_MS, REDIAL_MIN_MS};
use intergrid_proto::net::{Identity, client as net, refusal_of};
use intergrid_proto::pb::grid_client::GridClient;
use intergrid_proto::{Refusal, RefusalKind};
use serde::Deserialize;
use tokio::sync::Mutex;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::env::Environment;

/// The generated client over a connection.
pub type Grid = GridClient<Channel>;

/// Times a call is repeated that found its endpoint unavailable; the pause doubles each time.
const CALL_REPEATS_MAX: u32 = 5;
/// What a home's endpoint is called in its configuration.
pub const HOME_CONFIG: &str = "config.toml";

/// A user's home: where to ask, and as whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Home {
    /// With ca.pem, cert.pem and key.pem.
    pub dir: PathBuf,
    /// `host:port`.
    pub endpoint: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HomeConfig {
    endpoint: Option<String>,
}

impl Home {
    /// From the environment; `endpoint` of the command line wins over INTERGRID_ENDPOINT, and that over the home's configuration.
    pub fn load(environment: &Environment, endpoint: Option<&str>) -> Result<Home, Refusal> {
        let Some(dir) = environment.home.clone() else {
            return Err(
                Refusal::invalid("neither INTERGRID_HOME nor HOME is set").remedy("set INTERGRID_HOME to a directory made by `grid init home`")
            );
        };
        let given = endpoint.map(str::to_owned).or_else(|| environment.endpoint.clone());
        if !dir.is_dir() {
            let remedy = "make one with `grid init home`, or set INTERGRID_HOME; `grid demo --keep` makes a whole grid to try";
            return Err(Refusal::invalid(format!("there is no home at {}", dir.display())).remedy(remedy));
        }
        let endpoint = match given {
            Some(endpoint) => endpoint,
            None => read_endpoint(&dir.join(HOME_CONFIG))?,
        };
        Ok(Home { dir, endpoint })
    }

    /// Connect. Errors: `Unavailable` where nobody answers, `NotAuthorised` where either end does not trust the other.
    pub async fn connect(&self) -> Result<Client, Refusal> {
        let identity = Identity::load(&self.dir)?;
        let client = Client { endpoint: self.endpoint.clone(), identity, grid: Mutex::new(None) };
        client.grid().await?;
        Ok(client)
    }
}

/// A connection that is dialled again when it is lost.
pub struct Client {
    endpoint: String,
    identity: Identity,
    grid: Mutex<Option<Grid>>,
}

impl Client {
    async fn grid(&self) -> Result<Grid, Refusal> {
        let mut current = self.grid.lock().await;
        if let Some(grid) = &*current {
            return Ok(grid.clone());
        }
        let (channel, ..) = net::connect(&self.endpoint, &self.identity, self.identity.ca_pem()?, None).await?;
        Ok(current.insert(GridClient::new(channel)).clone())
    }

    /// A call, which ends in time, and is repeated a few times while its endpoint is unavailable: no call of this client does harm when it is repeated.
    pub async fn call<T>(&self, what: &str, ask: impl AsyncFn(Grid) -> Result<Response<T>, Status>) -> Result<T, Refusal> {
        self.call_within(what, CALL_TIMEOUT_MS, ask).await
    }

    /// The same, with a time-out for each attempt.
    pub async fn call_within<T>(&self, what: &str, timeout_ms: u64, ask: impl AsyncFn(Grid) -> Result<Response<T>, Status>) -> Result<T, Refusal> {
        let mut pause = Duration::from_millis(REDIAL_MIN_MS);
        for _ in 0..CALL_REPEATS_MAX {
            match self.call_once(what, timeout_ms, &ask).await {
                Err(r) if r.kind == RefusalKind::Unavailable => tokio::time::sleep(pause).await,
                other => return other,
            }
            pause *= 2;
        }
        self.call_once(what, timeout_ms, &ask).await
    }

    /// A call that is not repeated here.
    pub async fn call_once<T>(&self, what: &str, timeout_ms: u64, ask: impl AsyncFn(Grid) -> Result<Response<T>, Status>) -> Result<T, Refusal> {
        let grid = self.grid().await?;
        let answer = match tokio::time::timeout(Duration::from_millis(timeout_ms), ask(grid)).await {
            Ok(answer) => answer.map(Response::into_inner).map_err(|status| refusal_of(&status)),
            Err(_) => Err(silent(what, timeout_ms)),
        };
        if answer.as_ref().is_err_and(|r| r.kind == RefusalKind::Unavailable) {
            // A connection is never mended: the next call dials.
            *self.grid.lock().await = None;
        }
        answer
    }
}

fn read_endpoint(path: &Path) -> Result<String, Refusal> {
    let remedy = "write endpoint = \"HOST:PORT\" there, or give --endpoint";
    let text = std::fs::read_to_string(path).map_err(|e| Refusal::invalid(format!("{} can't be read: {e}", path.display())).remedy(remedy))?;
    let config: HomeConfig = toml::from_str(&text).map_err(|e| {
        let place = e.span().map_or(String::new(), |span| format!(":{}", line_and_column(&text, span.start)));
        Refusal::invalid(format!("{}{place}: {}", path.display(), e.message())).remedy(remedy)
    })?;
    config.endpoint.ok_or_else(|| Refusal::invalid(format!("{} names no endpoint", path.display())).remedy(remedy))
}

/// Nothing was heard for too long.
pub fn silent(what: &str, timeout_ms: u64) -> Refusal {
    let message = format!("{what}: no answer within {}", crate::render::duration(timeout_ms));
    Refusal::new(RefusalKind::Unavailable, message).remedy("try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_is_found_and_overridden() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(HOME_CONFIG), "endpoint = \"a:1\"\n").unwrap();
        let mut environment = Environment { home: Some(dir.path().to_owned()), ..Default::default() };
        assert_eq!("a:1", Home::load(&environment, None).unwrap().endpoint);
        environment.endpoint = Some("b:2".into());
        assert_eq!("b:2", Home::load(&environment, None).unwrap().endpoint);
        assert_eq!("c:3", Home::load(&environment, Some("c:3")).unwrap().endpoint);
    }

    #[test]
    fn a_bad_home_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let environment = Environment { home: Some(dir.path().join("no")), ..Default::default() };
        assert!(Home::load(&environment, None).unwrap_err().remedy.contains("grid init home"));
        std::fs::write(dir.path().join(HOME_CONFIG), "endpoint = 3\n").unwrap();
        let environment = Environment { home: Some(dir.path().to_owned()), ..Default::default() };
        let refused = Home::load(&environment, None).unwrap_err();
        assert!(refused.message.contains("config.toml:1:12: "), "{refused}");
    }
}
