"""The readers of a run folder: the HTML report and the TensorBoard files."""

from __future__ import annotations

import math
import re
import struct
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from lycoris import config, curves, eventfile, events, report
from lycoris.__main__ import main
from lycoris.runs import RunFolder
from lycoris.terminal import Terminal

NASTY = '<script src="http://evil.example/x.js">alert(1)</script> & "quotes" 🙂'


def made(folder: Path, name: str = "one", steps: int = 40, shift: float = 0.0) -> RunFolder:
    run = config.load(None, [f"output.name={name}", f"network.dim={8 if shift else 4}"])
    found = RunFolder(folder / name).create({
        "config.toml": config.dump(run), "plan.json": '{"parameters": 1234, "pictures": 5}'})
    found.append(events.Started(1, 1.0, "a CPU", steps))
    for step in range(1, steps + 1):
        found.append(events.Step(step, 0.1, 1 / step + shift, 1 / step + shift, 1e-4, 1.0, 0.5,
                                 2**20))
    for step, loss in ((0, 0.5), (10, 0.45), (20, 0.4)):
        found.append(events.Validated(step, loss, {"62": loss - 0.25, "937": loss + 0.25}))
    Image.new("RGB", (300, 200), "red").save(found.sub("samples") / "x.png")
    found.append(events.Sampled(0, 0, "samples/x.png", NASTY, 7, "base"))
    found.append(events.Sampled(steps, 0, "samples/x.png", NASTY, 7))
    found.append(events.Warned(NASTY, "Do this."))
    found.append(events.Measured(2**21, 2**20, 2.0))
    found.append(events.Finished("done", steps, "one.safetensors"))
    return found


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_needs_nothing_else(tmp_path: Path) -> None:
    run = made(tmp_path)
    text = report.write([run]).read_text("utf-8")
    page = Tags(text)
    tags = {tag for tag, _ in page.found}
    assert not tags & {"script", "link", "iframe", "object", "form", "base"}
    for _tag, attributes in page.found:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:image/webp;base64,") or (
            "src" not in attributes)
        assert "href" not in attributes
    assert "url(" not in text and "@import" not in text
    assert NASTY in page.text, "escaped, and so read back whole"
    images = [a for tag, a in page.found if tag == "img"]
    assert len(images) == 2 and images[0]["width"] == "192" and images[0]["height"] == "128"
    for said in ("40 of 40", "0:20", "2 steps/s", "1,234", "2 MiB", "1 MiB", "a CPU", "Do this.",
                 "network.dim", "Base model", "assets/tiny-sd", "5 in assets/datasets/zorb",
                 "Steps done", time.strftime("%Y-%m-%d"),
                 "0.4000, at step 20", "dashed: val/loss", "Difference"):
        assert (said in page.text) == (said != "Difference"), said
    dashed = [a for tag, a in page.found if tag == "polyline" and "stroke-dasharray" in a]
    assert len(dashed) == 1 and dashed[0]["points"].count(",") == 3
    first, rest = page.text.split("The other ")
    assert "network.dim" in first and "network.alpha" in rest and "network.dim" not in rest


def test_the_first_and_the_last_look_are_told_by_timestep(tmp_path: Path) -> None:
    table = re.compile(r"<table class='looks'>(.*?)</table>")
    run = made(tmp_path)

    def rows(*runs: RunFolder) -> list[list[str]]:
        found = table.search(report.of(runs))
        assert found is not None
        return [[re.sub("<.*?>", "", cell) for cell in re.findall("<t[hd].*?>(.*?)</t[hd]>", row)]
                for row in found[1].split("<tr>")[1:]]

    assert rows(run) == [
        ["timestep", "62", "937", "mean"], ["step 0", "0.2500", "0.7500", "0.5000"],
        ["step 20", "0.1500", "0.6500", "0.4000"], ["change", "-40.0 %", "-13.3 %", "-20.0 %"]]
    other = made(tmp_path, "two", shift=0.25)
    other.append(events.Validated(30, float("nan"), {"62": float("nan"), "500": 0.1}))
    assert [row[0] for row in rows(run, other)] == ["timestep", *(
        f"{name}, {what}" for name, what in (("one", "step 0"), ("one", "step 20"),
                                             ("one", "change"), ("two", "step 0"),
                                             ("two", "step 30"), ("two", "change")))]
    assert rows(run, other)[5] == ["two, step 30", "–", "0.1000", "–", "–"]
    bare = RunFolder(tmp_path / "bare").create({"config.toml": "[train]\nsteps = 5\n"})
    assert table.search(report.of([bare])) is None
    bare.append(events.Step(1, 0.1, 1.0, 1.0, 1e-4, 1.0, 0.5, 1))
    bare.append(events.Validated(1, 0.5, {"62": 0.5}))
    text = report.of([bare])
    assert "<circle" in text and "change" not in text, "one look is no line, and no change"


def test_what_is_no_number_is_plain_json(tmp_path: Path) -> None:
    said = events.line(events.Validated(3, float("nan"), {"62": float("inf"), "187": 0.5}))
    assert '"loss": null' in said and '{"62": null, "187": 0.5}' in said
    read = events.parse(said)
    assert read is not None and isinstance(read[1], events.Validated)
    assert math.isnan(read[1].loss) and math.isnan(read[1].timesteps["62"])


def test_the_command_line_tells_each_look(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(False) as terminal:
        terminal.event(events.Validated(10, 0.45, {"62": 0.2, "937": 0.7}))
    told = capsys.readouterr().err
    assert "Step 10: val/loss 0.4500 on the pictures held out; by timestep 62 0.2000, 937 " in told


def test_two_runs_have_one_report_with_their_difference(tmp_path: Path) -> None:
    a, b = made(tmp_path, "one"), made(tmp_path, "two", 30, 0.25)
    page = Tags(report.of([a, b]))
    assert "one minus two" in page.text
    lines = [attributes for tag, attributes in page.found if tag == "polyline"]
    assert {line["stroke"] for line in lines} == {"var(--a)", "var(--b)", "var(--ink)"}
    assert sum(tag == "img" for tag, _ in page.found) == 4


def test_the_difference_is_at_the_same_steps() -> None:
    a = curves.Curve("a", "a", [(s, 1.0, 1.0, 0.1) for s in range(1, 101)])
    b = curves.Curve("b", "b", [(s, 0.5, 0.5, 0.1) for s in range(1, 101, 2)])
    drawn = re.search(r'polyline points="([^"]+)"', curves.difference(a, b))
    assert drawn is not None
    points = [tuple(map(float, pair.split(","))) for pair in drawn[1].split()]
    assert len(points) == 50 and {y for _, y in points} == {float(curves.TOP)}
    far = curves.Curve("c", "b", [(500, 0.5, 0.5, 0.1)])
    assert "no step in common" in curves.difference(a, far)


def test_axes_are_round_and_what_lies_beyond_is_marked() -> None:
    assert curves._ticks(0.13, 0.71, 4) == [0.2, 0.4, 0.6] and curves._ticks(0, 300, 6) == [
        0, 50, 100, 150, 200, 250, 300]
    points = [(step, 0.5 + step / 1000, 0.5, 1e-4) for step in range(1, 401)]
    points[6] = (7, 90.0, 0.5, 1e-4)
    drawn = curves.plot([curves.Curve("a", "a", points)])
    assert drawn.count("<path") == 1 and "<title>a, step 7: 90</title>" in drawn


def test_long_curves_and_values_that_are_no_numbers(tmp_path: Path) -> None:
    points = [(s, float("nan") if s % 7 == 0 else s % 13 / 13, 0.5, 1e-4)
              for s in range(1, 50_001)]
    drawn = curves.plot([curves.Curve("a", "a", points)])
    assert "nan" not in drawn and len(drawn) < 150_000
    empty = RunFolder(tmp_path / "bare").create({"config.toml": "[train]\nsteps = 5\n"})
    assert "bare" in report.of([empty])


def test_a_picture_outside_of_the_folder_is_not_taken(tmp_path: Path) -> None:
    run = made(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    run.append(events.Sampled(3, 1, "../secret.png", "a", 1))
    assert sum(tag == "img" for tag, _ in Tags(report.of([run])).found) == 2


def records(data: bytes) -> list[bytes]:
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked(data[:8])
        body = data[12:12 + length]
        assert struct.unpack("<I", data[12 + length:16 + length])[0] == masked(body)
        found.append(body)
        data = data[16 + length:]
    return found


def masked(data: bytes) -> int:
    crc = eventfile.crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_the_checksum_is_that_of_the_standard() -> None:
    """RFC 3720, B.4: 32 bytes of zeros, of ones, and of 0 to 31."""
    assert eventfile.crc32c(bytes(32)) == 0x8A9136AA
    assert eventfile.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert eventfile.crc32c(bytes(range(32))) == 0x46DD794E
    assert eventfile.crc32c(b"123456789") == 0xE3069283


def test_events_become_records(tmp_path: Path) -> None:
    run = made(tmp_path)
    file = eventfile.write(run, tmp_path / "board")
    assert file.parent == tmp_path / "board" / "one"
    found = records(file.read_bytes())
    assert len(found) == 1 + 40 + 3 + 2 and b"brain.Event:2" in found[0]
    assert b"loss/mean" in found[1] and b"\x89PNG" in found[-1]
    assert all(tag in found[41] for tag in (b"val/loss", b"val/loss/t0062", b"val/loss/t0937"))
    assert eventfile.write(run, tmp_path / "board") == file
    assert len(list(file.parent.iterdir())) == 1


def test_tensorboard_reads_them(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    file = eventfile.write(made(tmp_path), tmp_path / "board")
    read = accumulator.EventAccumulator(str(file.parent)).Reload()
    losses = read.Scalars("loss")
    assert [each.step for each in losses] == list(range(1, 41))
    assert losses[3].value == pytest.approx(0.25)
    assert [(each.step, each.value) for each in read.Scalars("val/loss/t0062")] == [
        (0, 0.25), (10, pytest.approx(0.2)), (20, pytest.approx(0.15))]
    picture = read.Images("samples/00 base")[0]
    assert (picture.width, picture.height) == (300, 200)


def test_as_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two", "three"):
        made(tmp_path, name)
    one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
    assert main(["report", one]) == 0 and (tmp_path / "one" / "report.html").is_file()
    assert main(["report", one, two, "--out", str(tmp_path / "both.html")]) == 0
    assert "minus" in (tmp_path / "both.html").read_text("utf-8")
    assert main(["tensorboard", one, two, "--out", str(tmp_path / "board")]) == 0
    assert len(list((tmp_path / "board").rglob("events.out.*"))) == 2
    assert main(["report", one, two, three]) == 2
    assert main(["report", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
