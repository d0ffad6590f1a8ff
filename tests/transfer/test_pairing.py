"""A code that is shown, by a receiver and by others beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftx import api
from ftx.net import pairing
from ftx.net.identity import Identity
from ftx.net.pairing import Codes
from ftx.transfer import events
from ftx.transfer.pairing import Invitation
from tests.support.files import fill
from tests.support.local import LocalReceiver
from tests.support.process import wait_until

PUBLIC = Identity(b"d" * 32).public


def test_a_new_code_is_shown_for_each_that_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[events.Event] = []
    codes = Codes(tmp_path)
    shown = Invitation(codes, told.append)
    shown.show()

    def code() -> str:
        assert isinstance(told[-1], events.Code)
        return told[-1].code

    shown.renew()
    assert len(told) == 1
    codes.used(code(), "there", PUBLIC, lambda name, _: name)
    shown.renew()
    codes.withdraw(code())
    shown.renew()
    monkeypatch.setattr(pairing.m, "CODE_S", 0)
    shown.renew()
    reasons = [event.reason for event in told if isinstance(event, events.Code)]
    assert [bool(reason) for reason in reasons] == [False, False, True, True]
    assert "void" in reasons[2] and "run out" in reasons[3]


def test_another_process_is_let_finish(tmp_path: Path) -> None:
    """Two that both showed a new one as soon as theirs is gone would never end."""
    told: list[events.Event] = []
    codes = Codes(tmp_path)
    shown = Invitation(codes, told.append)
    shown.show()
    other = codes.make("laptop")
    shown.renew()
    shown.renew()
    assert len(told) == 1 and codes.begin() == other
    codes.used(other, "there", PUBLIC, lambda name, _: name)
    shown.renew()
    assert isinstance(told[-1], events.Code) and len(told) == 2 and told[-1].reason == ""


def test_a_receiver_goes_on_when_it_can_show_no_code_any_more(tmp_path: Path) -> None:
    source = fill(tmp_path / "file", 10)
    with LocalReceiver(tmp_path, show_code=True) as receiver:
        wait_until(lambda: receiver.of_type(events.Code))
        (tmp_path / "config" / "pairing").chmod(0o644)
        wait_until(lambda: receiver.of_type(events.Warn))
        assert "open to others" in receiver.of_type(events.Warn)[0].message
        options = api.SendOptions(host="127.0.0.1", port=receiver.port, config_dir=tmp_path / "config")
        assert api.send([source], options).code == 0


def test_a_program_is_asked_for_the_code_three_times(tmp_path: Path) -> None:
    source = fill(tmp_path / "file", 10)
    with LocalReceiver(tmp_path, show_code=True) as receiver:
        wait_until(lambda: receiver.of_type(events.Code))
        options = api.SendOptions(host="127.0.0.1", port=receiver.port, config_dir=tmp_path / "theirs")
        answers = ["0000-acorn-actor"] * 3 + [receiver.of_type(events.Code)[0].code]
        assert api.send([source], options, code=lambda: answers.pop(0)).code == 8
        assert len(answers) == 1
        assert api.send([source], options, code=lambda: None).code == 8
        assert api.send([source], options, code=lambda: answers.pop(0)).code == 0
        assert api.send([source], options).code == 0
