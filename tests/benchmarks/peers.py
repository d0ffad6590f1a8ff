"""The tools, as command lines.

Every server runs with a configuration and keys of its own, in a temporary folder and on a free port.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.benchmarks.processes import Command

REPOSITORY = Path(__file__).parents[2]
#: Where servers are, which are not on every user's path.
SEARCH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin:/usr/local/sbin"


def find(program: str) -> str | None:
    """Where a program is."""
    return shutil.which(program, path=SEARCH)


@dataclass(slots=True)
class Site:
    """What a tool's command lines are made of.

    Attributes:
        folder: the tool's own, for configuration, keys and logs.
        target: the folder that files are sent to.
        here, there: the sender's and the receiver's address.
        port: where the server listens; another one each time it is started.
    """

    folder: Path
    target: Path
    here: str
    there: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class Peer:
    """One tool.

    Attributes:
        encrypted: what it sends; it is compared with ftx run alike.
        send: the timed command, which brings a file or a folder into an empty target.
        again: the same for what is there already; None: the tool cannot tell that.
        resume: goes on with a file after a crash; None: the tool begins anew.
        server: runs all the time.
        receiver: runs for one transfer, and ends with it.
        receiver_listens: and the sender connects to it; otherwise the sender listens, and is started first.
        only: named where it takes part in nothing but resuming, or in nothing that leaves the machine.
        wire_copies: how often each byte goes over loopback.
    """

    name: str
    encrypted: bool
    programs: tuple[str, ...]
    version: tuple[str, ...]
    send: Callable[[Site, Path], Command]
    again: Callable[[Site, Path], Command] | None = None
    resume: Callable[[Site, Path], Command] | None = None
    server: Callable[[Site], Command] | None = None
    receiver: Callable[[Site, Path], Command] | None = None
    receiver_listens: bool = True
    only: str = ""
    wire_copies: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Its programs that are not here."""
        return [program for program in self.programs if find(program) is None]


def environment(site: Site, peer: Peer) -> dict[str, str]:
    """A program's whole environment: nothing of the user's, and for ftx bytecode as an installed program has it."""
    return {
        "PATH": SEARCH,
        "HOME": str(site.folder),
        "LANG": "C.UTF-8",
        "FTX_CONFIG_DIR": str(site.folder / "config"),
        "PYTHONPATH": str(REPOSITORY),
        **peer.environment,
    }


# --- ftx ---

FTX = (sys.executable, "-m", "ftx")


def ftx_receive(site: Site, *options: str) -> Command:
    where = ("--dir", site.target, "--bind", site.there, "--port", str(site.port), "--reserve", "0")
    return [*FTX, "receive", "--quiet", *where, *options]


def ftx_send(site: Site, source: Path, *options: str) -> Command:
    return [*FTX, "send", "--quiet", "--port", str(site.port), "--retry-for", "0", *options, source, site.there]


def ftx_plain_receive(site: Site) -> Command:
    return ftx_receive(site, "--plain")


def ftx_plain_send(site: Site, source: Path) -> Command:
    return ftx_send(site, source, "--plain")


# --- rsync ---


def rsync_server(site: Site) -> Command:
    config = site.folder / "rsyncd.conf"
    as_root = "uid = root\ngid = root\n" if os.geteuid() == 0 else ""
    config.write_text(
        f"use chroot = no\nmunge symlinks = no\nreverse lookup = no\nlog file = {site.folder}/rsyncd.log\n{as_root}"
        f"[m]\npath = {site.target}\nread only = no\n"
    )
    address = (f"--address={site.there}", f"--port={site.port}")
    return ["rsync", "--daemon", "--no-detach", f"--config={config}", *address]


def rsync(site: Site, source: Path, *options: str) -> Command:
    return ["rsync", *options, source, f"rsync://{site.there}:{site.port}/m/"]


def rsync_send(site: Site, source: Path) -> Command:
    return rsync(site, source, "-a" if source.is_dir() else "-aW", *([] if source.is_dir() else ["--inplace"]))


def rsync_partial(site: Site, source: Path) -> Command:
    return rsync(site, source, "-a", "--partial", "--inplace")


def rsync_append(site: Site, source: Path) -> Command:
    return rsync(site, source, "-a", "--append-verify")


# --- over ssh ---


def sshd(site: Site) -> Command:
    """A server with keys of its own, and a client's configuration that leads there as ``far``."""
    folder = site.folder
    for name in ("host", "user"):
        if not (folder / name).exists():
            keygen: list[str | Path] = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
            subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
    (folder / "sshd_config").write_text(
        f"Port {site.port}\nListenAddress {site.there}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPidFile none\n"
        "PermitRootLogin yes\nPrintMotd no\nSubsystem sftp internal-sftp\n"
    )
    (folder / "ssh_config").write_text(
        f"Host far\n  HostName {site.there}\n  Port {site.port}\n  User {user()}\n  IdentityFile {folder}/user\n"
        f"  IdentitiesOnly yes\n  BatchMode yes\n  LogLevel ERROR\n  UserKnownHostsFile {folder}/known\n"
        "  StrictHostKeyChecking no\n  HostKeyAlias far\n"
    )
    return [find("sshd") or "sshd", "-D", "-e", "-f", folder / "sshd_config"]  # which starts itself by this path


def user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def rsync_ssh(site: Site, source: Path, *options: str) -> Command:
    kind = ["-a"] if source.is_dir() else ["-aW", "--inplace"]
    return ["rsync", *(options or kind), "-e", f"ssh -F {site.folder}/ssh_config", source, f"far:{site.target}/"]


def rsync_ssh_partial(site: Site, source: Path) -> Command:
    return rsync_ssh(site, source, "-a", "--partial", "--inplace")


def scp(site: Site, source: Path) -> Command:
    return ["scp", "-q", "-r", "-F", site.folder / "ssh_config", source, f"far:{site.target}/"]


def sftp(site: Site, line: str) -> Command:
    batch = site.folder / line.partition(" /")[0].replace(" ", "")
    batch.write_text(line + "\n")
    return ["sftp", "-q", "-F", site.folder / "ssh_config", "-b", batch, "far"]


def sftp_put(site: Site, source: Path) -> Command:
    return sftp(site, f"put {'-r ' * source.is_dir()}{source} {site.target}/")


def sftp_reput(site: Site, source: Path) -> Command:
    return sftp(site, f"reput {source} {site.target}/{source.name}")


# --- ftp ---


def vsftpd(site: Site) -> Command:
    """A server for anonymous users, who may write below ``target`` but not in its parent, where they arrive."""
    config = site.folder / "vsftpd.conf"
    site.target.parent.chmod(0o555)
    config.write_text(
        f"listen=YES\nlisten_address={site.there}\nlisten_port={site.port}\nbackground=NO\n"
        f"run_as_launching_user=YES\nanonymous_enable=YES\nanon_root={site.target.parent}\nno_anon_password=YES\n"
        "write_enable=YES\nanon_upload_enable=YES\nanon_mkdir_write_enable=YES\nanon_other_write_enable=YES\n"
        "anon_umask=022\nseccomp_sandbox=NO\nxferlog_enable=NO\nmdtm_write=YES\n"
    )
    return ["vsftpd", config]


def lftp(site: Site, line: str) -> Command:
    commands = ("set ftp:ssl-allow no", "set cmd:fail-exit yes", f"open -u anonymous,x ftp://{site.there}:{site.port}")
    return ["lftp", "-c", "; ".join((*commands, f"cd {site.target.name}", line))]


def lftp_put(site: Site, source: Path) -> Command:
    return lftp(site, f"mirror -R -L --parallel=4 {source} {source.name}" if source.is_dir() else f"put {source}")


def lftp_continue(site: Site, source: Path) -> Command:
    return lftp_put(site, source) if source.is_dir() else lftp(site, f"put -c {source}")


# --- bare TCP, no TCP at all ---


def socat_receive(site: Site, source: Path) -> Command:
    into = f"EXEC:tar xf - -C {site.target}" if source.is_dir() else f"CREATE:{site.target / source.name}"
    return ["socat", "-u", "-b1048576", f"TCP-LISTEN:{site.port},bind={site.there},reuseaddr", into]


def socat_send(site: Site, source: Path) -> Command:
    tree = f"EXEC:tar cf - -C {source.parent} {source.name}"
    what = tree if source.is_dir() else f"OPEN:{source},rdonly"
    return ["socat", "-u", "-b1048576", what, f"TCP:{site.there}:{site.port}"]


def cp(site: Site, source: Path) -> Command:
    return ["cp", "-a", source, f"{site.target}/"]


# --- others ---

CROC = ("croc", "--yes", "--disable-clipboard", "--ignore-stdin", "--quiet", "--local")


def croc_send(site: Site, source: Path) -> Command:
    return [*CROC, "send", "--port", str(site.port), source]


def croc_receive(site: Site, _source: Path) -> Command:
    return [*CROC, "--overwrite", "--ip", f"{site.here}:{site.port}", "--out", site.target]


def rclone(site: Site, source: Path) -> Command:
    remote = (
        f":sftp,host={site.there},port={site.port},user={user()},key_file={site.folder}/user,disable_hashcheck=true"
    )
    into = site.target / source.name if source.is_dir() else site.target
    return ["rclone", "--config", "/dev/null", "copy", "--create-empty-src-dirs", source, f"{remote}:{into}"]


SSH = ("ssh", "sshd", "ssh-keygen")
RSYNC_VERSION = ("rsync", "--version")
SSH_VERSION = ("ssh", "-V")
rsync_daemon = partial(
    Peer, encrypted=False, programs=("rsync",), version=RSYNC_VERSION, send=rsync_send, server=rsync_server
)

PEERS = (
    Peer("ftx", True, (), (*FTX, "--version"), ftx_send, ftx_send, ftx_send, ftx_receive),
    Peer(
        "ftx --plain",
        False,
        (),
        (*FTX, "--version"),
        ftx_plain_send,
        ftx_plain_send,
        ftx_plain_send,
        ftx_plain_receive,
    ),
    rsync_daemon("rsync daemon", again=rsync_send, resume=rsync_partial),
    rsync_daemon("rsync daemon --append-verify", resume=rsync_append, only="resume"),
    Peer(
        "rsync over ssh",
        True,
        ("rsync", *SSH),
        RSYNC_VERSION,
        rsync_ssh,
        again=rsync_ssh,
        resume=rsync_ssh_partial,
        server=sshd,
    ),
    Peer("scp", True, ("scp", *SSH), SSH_VERSION, scp, server=sshd),
    Peer("sftp", True, ("sftp", *SSH), SSH_VERSION, sftp_put, resume=sftp_reput, server=sshd),
    Peer(
        "lftp to vsftpd",
        False,
        ("lftp", "vsftpd"),
        ("lftp", "--version"),
        lftp_put,
        again=lftp_continue,
        resume=lftp_continue,
        server=vsftpd,
    ),
    Peer("socat", False, ("socat", "tar"), ("socat", "-V"), socat_send, receiver=socat_receive),
    Peer("cp", False, ("cp",), ("cp", "--version"), cp, only="loopback"),
    Peer(
        "croc",
        True,
        ("croc",),
        ("croc", "--version"),
        croc_send,
        again=croc_send,
        resume=croc_send,
        receiver=croc_receive,
        receiver_listens=False,
        wire_copies=2,
        environment={"CROC_SECRET": "1234-benchmark-of-transfers"},
    ),
    Peer("rclone to sftp", True, ("rclone", *SSH), ("rclone", "version"), rclone, again=rclone, server=sshd),
)
