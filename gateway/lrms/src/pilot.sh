# One agent as a job of the LRMS. It claims its directory first: a job that was submitted twice, or started over, ends at once.
# Exit: the agent's own; 120: claimed by another; 121: this machine has not what it needs.
umask 077
cd "$grid_dir" || exit 121
(set -C; echo "${SLURM_JOB_ID:-${JOB_ID:-0}} ${SLURMD_NODENAME:-$(uname -n)} $$" >claim) 2>/dev/null || exit 120
# Its key, its spool and its tasks' directories are on this machine's own disk, and go with it.
work=$(mktemp -d "${TMPDIR:-/tmp}/grid-pilot.XXXXXXXXXX") || exit 121
agent=
on_term() {
  [ -n "$agent" ] && kill -TERM "$agent" 2>/dev/null
}
trap on_term TERM INT XCPU USR1 USR2 2>/dev/null
cp agent.toml "$work/agent.toml" || exit 121
"$grid_program" --config "$work/agent.toml" </dev/null >>log 2>&1 &
agent=$!
while :; do
  wait "$agent"
  code=$?
  kill -0 "$agent" 2>/dev/null || break
done
rm -rf "$work"
exit "$code"
