#!/bin/sh
# Runs one task of a submission on whatever machine the LRMS has chosen. It claims the task first: who finds the claim taken, touches nothing.
# Exit: the payload's own, but 1 for 121; 120: claimed by another; 121: this machine has not what it needs, and nothing was started.
umask 077
cd "$grid_base/$grid_tag" || exit 121
pos=${SLURM_ARRAY_TASK_ID:-${SGE_TASK_ID:-1}}
[ "$pos" = undefined ] && pos=1
case $pos in '' | *[!0-9]*) exit 121 ;; esac
# Its run of tasks: the position of the first, the index of that one, and whose words they have.
own=
for run in $grid_runs; do
  [ "${run%%:*}" -gt "$pos" ] && break
  own=$run
done
[ -n "$own" ] || exit 121
words=${own##*:}
index=${own#*:}
index=$((${index%:*} + pos - ${own%%:*}))
run=../run/$grid_tag.$pos
node=${SLURMD_NODENAME:-${HOSTNAME:-$(uname -n)}}
# Created exclusively, and written at once: an empty claim of another is one all the same. Our own that can't be written, as on a full disk, is nobody's.
(set -C; { printf '%s %s %s\n' "${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-${JOB_ID:-0}}}" "$node" "$$" || exit 9; } >"$run.c") 2>/dev/null
case $? in
  0) [ -s "$run.c" ] || { rm -f "$run.c"; exit 121; } ;;
  9) rm -f "$run.c"; exit 121 ;;
  *) [ -e "$run.c" ] && exit 120; exit 121 ;;
esac
cd "$pos" || exit 121

# A word as its line in a file has it: the task's index for {i}, and \\ and \n for a backslash and the end of a line. A shell reads a word whole
# for each look and each change: it is cut once, and put together in blocks.
word() {
  case $line in
    *'{i}'*)
      # The dot: a brace at the end ends the last piece, and begins none.
      IFS='{'
      set -f
      set -- $line.
      set +f
      unset IFS
      line=$1 block='' pieces=0
      shift
      for piece; do
        case $piece in
          'i}'*) block=$block$index${piece#??} ;;
          *) block=$block"{"$piece ;;
        esac
        pieces=$((pieces + 1))
        [ $((pieces % 128)) = 0 ] && line=$line$block block=
      done
      line=$line$block
      line=${line%.}
      ;;
  esac
  case $line in
    *\\*) line=$(printf '%bx' "$line") && line=${line%x} ;;
  esac
}
# Signals that came: each interrupts a wait, and Grid Engine says more than once that it will kill.
term=0
child=
told=
on_term() {
  term=$((term + 1))
  tell
}
tell() {
  # Once: a second TERM would break into what a payload does at the first.
  [ -n "$child" ] && [ -z "$told" ] && told=1 && kill -TERM "$child" 2>/dev/null
}
trap on_term TERM INT XCPU USR1 USR2 2>/dev/null
# Grid Engine says USR1 to all processes of a job that it will stop, and USR2 before it kills them. A payload hears of its end by TERM, as everywhere.
[ -n "$SGE_TASK_ID" ] && trap '' USR1
read -r t0 rest </proc/uptime
# A shell says 128+n of a signal and of an exit code alike, and nothing of memory: perl, where there is one, sees to the end of the payload.
# Each look is a process more: one for all three, each on its line.
end='
'
tools=$(command -v env; command -v nice; command -v perl)
env=${tools%%"$end"*} tools=${tools#*"$end"}
nice=${tools%%"$end"*}
perl=${tools#"$nice"}
perl=${perl#"$end"}
# Where the site would lead it astray, the shell alone sees to the end.
[ -z "$PERL5OPT$PERL5LIB$PERL_UNICODE" ] || perl=
# The number of getrusage goes by the architecture, which the head of a program names: 64 bits, and x86-64 or AArch64.
# shellcheck disable=SC2016
see='$f = shift; @s = grep { ($SIG{$_} || "") ne "IGNORE" } qw(TERM INT XCPU USR1 USR2);
$SIG{$_} = sub { $p ? kill $_[0], $p : ($q = $_[0]) } for @s;
defined($p = fork) or exit 126;
unless ($p) { $SIG{$_} = "DEFAULT" for @s; kill $q, $$ if $q; exec {$ARGV[0]} @ARGV; print STDERR "$ARGV[0]: $!\n"; exit($! == 2 ? 127 : 126) }
kill $q, $p if $q;
1 until waitpid($p, 0) == $p; ($s, $c, $m) = ($? & 127, $? >> 8, 0);
eval { open E, "<", $^X and read E, $h, 20 and ($b, $a) = unpack("x4 C x13 v", $h) and $u = "\0" x 288; %n = (62 => 98, 183 => 165);
$b == 2 and $n{$a} and syscall($n{$a}, -1, $u) == 0 and $m = (unpack "l!5", $u)[4] };
open F, ">", $f and print F "$s $c $m\n" and close F; exit($s ? 128 + $s : $c)'

payload() {
  less=
  [ "${SLURM_CPUS_ON_NODE:-${NSLOTS:-$grid_slots}}" -lt "$grid_slots" ] 2>/dev/null && less=slots
  [ "${SLURM_MEM_PER_NODE:-$grid_memory}" -lt "$grid_memory" ] 2>/dev/null && less=memory
  # Slurm says nothing of GPUs where it gave none.
  [ "${SLURM_JOB_ID:+${SLURM_GPUS_ON_NODE:-0}}" -lt "$grid_gpus" ] 2>/dev/null && less=gpus
  [ "${SLURM_JOB_NUM_NODES:-$grid_nodes}" -lt "$grid_nodes" ] 2>/dev/null && less=machines
  [ -z "$less" ] || { echo "less-$less" >fault; exit 126; }
  trap - TERM INT XCPU USR1 USR2 2>/dev/null
  [ -n "$SGE_TASK_ID" ] && trap '' USR1 USR2
  # Its end came before its beginning.
  [ "$term" = 0 ] || exit 143
  cd w || exit 126
  if [ -d ../../in ]; then
    cp -R -p ../../in/. . || { echo stage-in >../fault; exit 126; }
  fi
  # The gateway's own, for the commands that it runs; the user's comes below.
  unset LC_ALL
  {
    # A name may be one that this shell lives by, or one of our own: all but those that are known go through env, which is a program more.
    while IFS= read -r line && [ "$line" != -- ]; do
      word
      case ${line%%=*} in
        PATH | TRACEPARENT) export "$line" ;;
        GRID_*[!ABCDEFGHIJKLMNOPQRSTUVWXYZ_]*) set -- "$@" "$line" ;;
        GRID_*) export "$line" ;;
        LANG) lang=$line ;;
        *) set -- "$@" "$line" ;;
      esac
    done
    for line in $grid_dirs; do export "$line=$PWD"; done
    [ $# = 0 ] && [ -n "$perl" ] || set -- "$env" -- "$@"
    first=1
    while IFS= read -r line; do
      word
      if [ $first = 1 ]; then
        first=0
        program=$line
        # To env it would be one more variable; nice starts what it is given, and nothing else here.
        case $line in *=*) set -- "$@" "$nice" -n 0 ;; esac
      fi
      set -- "$@" "$line"
    done
  } <"../../w.$words" || { echo stage-in >../fault; exit 126; }
  case $program in
    */*)
      [ -e "$program" ] || { echo no-such-program >../fault; exit 127; }
      [ -f "$program" ] && [ -x "$program" ] || { echo not-executable >../fault; exit 126; }
      ;;
    *) command -v "$program" >/dev/null 2>&1 || { echo no-such-program >../fault; exit 127; } ;;
  esac
  [ -z "$perl" ] || set -- "$perl" -e "$see" ../how "$@"
  # Last: this shell has its own by it, too.
  export "$lang"
  unset line piece pieces block first program rest t0 term told child run own words pos node index perl env nice end tools lang see less
  unset grid_base grid_tag grid_dirs grid_runs grid_slots grid_memory grid_gpus grid_nodes
  exec "$@"
}

payload </dev/null >stdout 2>stderr &
child=$!
# What came while it began.
[ "$term" = 0 ] || tell
while :; do
  before=$term
  wait "$child"
  code=$?
  # A wait that a signal has interrupted is none.
  if [ "$before" != "$term" ] && kill -0 "$child" 2>/dev/null; then continue; fi
  if [ "$before" != "$term" ]; then
    wait "$child"
    again=$?
    [ $again != 127 ] && code=$again
  fi
  break
done
read -r t1 rest </proc/uptime
fault=
[ -e fault ] && read -r fault <fault
how=
[ -e how ] && read -r how <how
# What is not whole is none: its last line is looked for. Where there is no room for it, the LRMS's own books tell the end; they also do where a machine
# loses what it had not yet on its disk.
{
  printf 'v2\ncode %s\nterm %s\nfrom %s\nto %s\nfault %s\n' "$code" "$((term > 0))" "$t0" "$t1" "$fault" &&
    times &&
    printf 'how %s\nend\n' "$how"
} >"../$run.x" || rm -f "../$run.x"
# To the LRMS's books that is the word of a script that could not begin: it has to be true where its claim and record can't be seen.
[ "$code" = 121 ] && code=1
exit "$code"
