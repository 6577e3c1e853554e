# SPDX-License-Identifier: GPL-3.0-or-later
"""The server that a command draws with: a running one, or one that is started here. No bpy."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from .command_line import CommandError, ExitCode
from .core.client import Client, ClientError, ServerGone, WrongVersion
from .core.server_process import Address, ServerProcess, ServerState, find_server
from .terminal import Reporter


def server(
    options: argparse.Namespace, reporter: Reporter
) -> tuple[Callable[[], Client], ServerProcess | None]:
    """A function that connects (called in threads), and the process if one was started here."""
    if options.server:
        try:
            Client(options.server, "").close()  # the address is looked at before anything is done
        except ClientError as error:
            raise CommandError(ExitCode.usage, error.message, error.fix) from None
        url, token = options.server, options.token or ""
        return (lambda: connected(Address(url, token))), None
    process = ServerProcess(find_server(options.server_command))
    if options.dry_run:
        return (lambda: connected(None)), None
    reporter.say("Starting the server.")
    if process.start() is ServerState.not_installed:
        raise CommandError(ExitCode.no_server, process.message, process.fix)
    return (lambda: connect_local(process)), process


def connected(address: Address | None) -> Client:
    """A client of this address whose server has answered and fits. Raises ClientError."""
    if address is None:
        raise ServerGone("No Onmodel server runs.", "Start it, or name one with --server.")
    client = Client(address.url, address.token)
    client.info()
    return client


def connect_local(process: ServerProcess, patience: float = 150.0) -> Client:
    """A client of the local server, which is started where it does not run. Raises ClientError.

    Blocks; for a thread. A server that has just died is noticed by its refusal to answer, so a
    second look follows.
    """
    end = time.monotonic() + patience
    while True:
        state = process.poll()
        if state is ServerState.running:
            try:
                return connected(process.address)
            except WrongVersion as error:
                process.mismatch(error.message, error.fix)
                raise
            except ServerGone:
                if time.monotonic() > end:
                    raise
        elif state in (ServerState.failed, ServerState.not_installed, ServerState.update_required):
            if process.tripped or state is not ServerState.failed:
                raise ServerGone(process.message, process.fix)
            process.start()
        elif state is ServerState.stopped:
            process.start()
        if time.monotonic() > end:
            raise ServerGone("The server did not start in time.", f"Its log: {process.log_file}.")
        time.sleep(0.05)
