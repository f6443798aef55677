//! What tasks of an agent that is gone may have left running, by its own records: for whoever is to end it.

use std::path::Path;

use intergrid_proto::Refusal;

use crate::machine::boot_id;
use crate::spool;
use crate::spool::record::Started;
use crate::state::State;

/// The processes of this boot that are recorded for tasks which have not ended, each the first of its task and of its group. One is still there where
/// [`began`](crate::exec::proc::began) finds it. Error: the state's spool can't be read.
pub fn recorded(state: &Path) -> Result<Vec<Started>, Refusal> {
    let (state, boot) = (State::replay(spool::read(state)?)?, boot_id());
    let claims = state.placements.values().flat_map(|p| p.claims.values());
    Ok(claims.filter(|c| c.boot == boot).filter_map(|c| c.started).collect())
}
