"""One SuperLink and two SuperNodes as separate processes on this machine, with TLS and node authentication: a federation in miniature.

    python examples/loopback_deployment.py DEPLOYMENT [KEY=VALUE ...]

What it does is what a real deployment does, on one machine: a certificate authority signs the SuperLink's certificate; each site makes a key pair
and the operator registers the public half; the SuperNodes connect; `flwr run` starts the app. Every process is ended before the script returns.
DEPLOYMENT receives keys, logs, the run folder `run/`, and each site's own state `state-0/`, `state-1/`. KEY=VALUE overrides the run configuration.
"""

import datetime
import ipaddress
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

APP = Path(__file__).parents[1]
SITES = 2
PROGRAMS = Path(sys.executable).parent


def make_certificates(folder: Path) -> None:
    """A certificate authority, and a certificate of localhost that it signed."""
    authority, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))

    def signed(name: str, key: ec.EllipticCurvePublicKey, is_authority: bool) -> x509.Certificate:
        today = datetime.datetime.now(datetime.UTC)
        subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, "site CA"))
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        builder = builder.not_valid_before(today - datetime.timedelta(days=1))
        builder = builder.not_valid_after(today + datetime.timedelta(days=30))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        if not is_authority:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(authority, hashes.SHA256())

    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(signed("site CA", authority.public_key(), True).public_bytes(pem))
    (folder / "server.pem").write_bytes(signed("localhost", server.public_key(), False).public_bytes(pem))
    private = server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.key").write_bytes(private)


def make_node_key(path: Path) -> None:
    """A site's key pair, as `ssh-keygen -t ecdsa -b 384` makes it: PATH and PATH.pub."""
    key = ec.generate_private_key(ec.SECP384R1())
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(*openssh))


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    """Until something listens on the port.

    Raises:
        RuntimeError: the process ended, or time ran out.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"nothing listens on port {port}; see the logs")


def deploy(folder: Path, overrides: Sequence[str] = ()) -> str:
    """Deploy, run the app once, and end everything.

    Args:
        folder: for keys, logs and results; made if missing.
        overrides: `key=value` of the run configuration.

    Returns:
        The run's log.

    Raises:
        RuntimeError: a program failed; the message ends with its output.
    """
    folder = folder.resolve()
    (folder / "home").mkdir(parents=True, exist_ok=True)
    make_certificates(folder)
    port = free_port()
    (folder / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "site"\n\n[superlink.site]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{folder / "ca.pem"}"\n'
    )
    environment = os.environ | {
        # Flower's programs find one another by name.
        "PATH": f"{os.environ['PATH']}{os.pathsep}{PROGRAMS}",
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }

    def flwr(*arguments: str) -> str:
        command = [str(PROGRAMS / "flwr"), *arguments]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    with ExitStack() as running:

        def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
            name = f"{program}-{len(list(folder.glob(f'{program}-*.log')))}.log"
            log = running.enter_context((folder / name).open("wb"))
            process = subprocess.Popen(
                [PROGRAMS / program, *arguments], env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT
            )
            running.callback(end, process)
            return process

        superlink = start(
            "flower-superlink",
            *("--ssl-ca-certfile", "ca.pem", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation", "--port", str(port)),
        )
        wait_for_port(port, superlink)
        for site in range(SITES):
            make_node_key(folder / f"site-{site}")
            flwr("supernode", "register", f"site-{site}.pub", "site")
            start(
                "flower-supernode",
                *("--superlink", f"127.0.0.1:{port}", "--root-certificates", "ca.pem"),
                *("--auth-supernode-private-key", f"site-{site}", "--port", str(free_port())),
                "--node-config",
                f'partition-id={site} num-partitions={SITES} state-dir="{folder / f"state-{site}"}"',
            )
        settings = [f"clients={SITES}", f'out="{folder / "run"}"', *overrides]
        return flwr("run", str(APP), "site", "--stream", "--run-config", " ".join(settings))


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that this script started."""
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.stdout.write(deploy(Path(sys.argv[1]), sys.argv[2:]))
