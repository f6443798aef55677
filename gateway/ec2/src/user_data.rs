//! The script that makes a fresh machine an agent of its gateway: cloud-init runs it once, as root.
//!
//! Invariant: from its first line on, a machine on which a step fails switches itself off, and so does one that is alone; with
//! `InstanceInitiatedShutdownBehavior = terminate` that ends it. It is a pure function of what it is given: a launch that is repeated sends the same bytes.

use intergrid_gateway::config::AgentProgram;

/// Where an instance asks about itself, and is told that it is taken back.
const METADATA: &str = "http://169.254.169.254";

/// What EC2 takes.
pub const USER_DATA_BYTES_MAX: usize = 16 * 1_024;

/// What a machine is told.
pub struct Told<'a> {
    /// Name of its agent.
    pub label: &'a str,
    /// `host:port` of its gateway.
    pub gateway: &'a str,
    /// Its slots.
    pub slots: u32,
    /// Its memory.
    pub memory_bytes: u64,
    /// Its GPUs.
    pub gpus: u32,
    /// Its token, in PEM.
    pub token: &'a str,
    /// Without its gateway and without work, it ends after so long.
    pub alone_ms: u64,
    /// Where it is told that it is taken back; absent: where EC2 has it.
    pub notices: Option<&'a str>,
    /// Where it gets its agent; absent: it has one.
    pub agent: Option<&'a AgentProgram>,
}

const HEAD: &str = r#"#!/bin/sh
# Makes this machine an agent of an Intergrid gateway. The token is good for one machine, once, and for 25 hours. A machine on which a step fails, or that is
# left alone, switches itself off.
umask 077
root=${INTERGRID_ROOT:-}
etc=$root/etc/intergrid-agent
lib=$root/var/lib/intergrid-agent
off() {
    echo "intergrid: $1: this machine switches itself off" >&2
    "$root/sbin/poweroff" || [ -n "$root" ] || shutdown -h now
    exit 1
}
mkdir -p "$etc" "$lib" "$root/usr/local/bin" || off "no directory can be made"
"#;

const IN_IMAGE: &str = r#"bin=$(command -v grid-agent) || off "there is no grid-agent in this image"
"#;

const FETCH: &str = r#"bin=$root/usr/local/bin/grid-agent
fetch() { if command -v curl >/dev/null; then curl -fsSL --connect-timeout 10 --max-time 300 -o "$bin" "$1"; else wget -q -T 60 -O "$bin" "$1"; fi; }
tries=0
until fetch '@URL@' && echo "@SHA256@  $bin" | sha256sum -c - >/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 5 ] || off "the agent can't be fetched, or is not what it should be"
    sleep 3
done
chmod 755 "$bin"
"#;

const START: &str = r#"if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    cat >/etc/systemd/system/intergrid-agent.service <<END || off "the disk can't be written"
[Unit]
Description=Intergrid agent
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=600
StartLimitBurst=20
StartLimitAction=poweroff

[Service]
ExecStart=$bin --config $etc/agent.toml
Restart=always
RestartSec=5
KillMode=process
OOMPolicy=continue
LimitNOFILE=65536
TasksMax=infinity

[Install]
WantedBy=multi-user.target
END
    systemctl daemon-reload && systemctl enable intergrid-agent && systemctl start --no-block intergrid-agent || off "the agent can't be started"
    exit 0
fi
tries=0
while [ $tries -lt 20 ]; do
    "$bin" --config "$etc/agent.toml"
    tries=$((tries + 1))
    sleep 5
done
off "the agent ends again and again"
"#;

/// The script.
pub fn user_data(told: &Told<'_>) -> String {
    let agent = match told.agent {
        Some(agent) => FETCH.replace("@URL@", &agent.url).replace("@SHA256@", &agent.sha256),
        None => IN_IMAGE.to_string(),
    };
    // Configuration files take whole MiB; a rounded one is smaller.
    let (mib, alone_s) = ((told.memory_bytes >> 20).max(1), (told.alone_ms / 1_000).max(1));
    let config = format!(
        "name = \"{}\"\ngateway = \"{}\"\nidentity = \"$lib/identity\"\nstate = \"$lib/state\"\ntoken = \"$etc/token.pem\"\nslots = {}\nmemory = \"{mib}M\"\ngpus = {}\n\
         alone_max = \"{alone_s}s\"\non_alone = [\"$root/sbin/poweroff\"]\nnotices = \"{}\"\n",
        told.label,
        told.gateway,
        told.slots,
        told.gpus,
        told.notices.unwrap_or(METADATA)
    );
    let token = told.token.trim_end();
    let files = format!(
        "cat >\"$etc/token.pem\" <<'END' || off \"the disk can't be written\"\n{token}\nEND\n\
         cat >\"$etc/agent.toml\" <<END || off \"the disk can't be written\"\n{config}END\n"
    );
    [HEAD, &files, &agent, START].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_each_time_and_small() {
        let agent = AgentProgram { url: "https://example.org/grid-agent".into(), sha256: "ab".repeat(32) };
        let told = || Told {
            label: "burst-m17",
            gateway: "grid.example.org:7411",
            slots: 4,
            memory_bytes: (8 << 30) + 5,
            gpus: 1,
            token: "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n",
            alone_ms: 900_000,
            notices: None,
            agent: Some(&agent),
        };
        let script = user_data(&told());
        assert_eq!(script, user_data(&told()));
        assert!(script.len() < USER_DATA_BYTES_MAX / 4, "{} bytes without a token", script.len());
        for line in [
            "name = \"burst-m17\"",
            "gateway = \"grid.example.org:7411\"",
            "slots = 4",
            "memory = \"8192M\"",
            "alone_max = \"900s\"",
            "notices = \"http://169.254.169.254\"",
        ] {
            assert!(script.lines().any(|l| l == line), "{line}:\n{script}");
        }
        assert!(script.starts_with("#!/bin/sh\n") && script.contains("fetch 'https://example.org/grid-agent'"));
        let elsewhere = user_data(&Told { notices: Some("http://10.0.0.1:8080"), ..told() });
        assert!(elsewhere.contains("\nnotices = \"http://10.0.0.1:8080\"\n") && !elsewhere.contains(METADATA));
        assert!(user_data(&Told { agent: None, ..told() }).contains("command -v grid-agent"));
    }
}
