# One agent as a job of the LRMS. It claims its directory first: a job that was submitted twice, or started over, ends at once.
# Exit: the agent's own; 120: claimed by another; 121: this machine has not what it needs.
umask 077
cd "$grid_dir" || exit 121
(set -C; echo "${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-${JOB_ID:-0}}} ${SLURMD_NODENAME:-$(uname -n)} $$" >claim) 2>/dev/null || exit 120
# Its key, its spool and its tasks' directories are on this machine's own disk, and go with it, unless this script is killed outright.
work=$(mktemp -d "${TMPDIR:-/tmp}/grid-pilot.XXXXXXXXXX") || exit 121
agent=
on_term() {
  [ -n "$agent" ] && kill -TERM "$agent" 2>/dev/null
}
# Grid Engine says USR1 to all processes of a job that it will stop for a while, and USR2 before it kills them; the agent hears of its end by TERM.
trap on_term TERM INT XCPU USR2 2>/dev/null
trap '' USR1
cp agent.toml "$work/agent.toml" || exit 121
(trap '' XCPU USR1 USR2 2>/dev/null; exec "$grid_program" --config "$work/agent.toml") </dev/null >>log 2>&1 &
agent=$!
while :; do
  wait "$agent"
  code=$?
  kill -0 "$agent" 2>/dev/null || break
done
# Where it was killed, its tasks are still there, in groups of their own that not every LRMS ends.
for process in /proc/[0-9]*; do
  case $(readlink "$process/cwd" 2>/dev/null) in
    "$work" | "$work"/*) kill -KILL "${process#/proc/}" 2>/dev/null ;;
  esac
done
rm -rf "$work"
exit "$code"
