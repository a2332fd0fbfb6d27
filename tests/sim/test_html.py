"""The HTML page of a report: the waterfall adds up, nothing is fetched, nothing unescaped."""

import html.parser
import json
import math

import pytest

from seriatim import cli
from seriatim.sim import html as pages
from seriatim.sim import report as reports

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of the digits network at the ISA level."""
    folder = tmp_path_factory.mktemp("run")
    assert cli.main(["sim", "--net", "digits", "--images", "2", "--session", "isa", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def report(run):
    """That report with cycles, as the RTL would have counted them."""
    report = reports.load(run)
    peak, total = report["totals"]["peak_binary_macs_per_cycle"], report["totals"]
    for i, layer in enumerate(report["layers"]):
        useful = math.ceil(layer["macs"] * layer["w"] * layer["a"] / peak)
        layer["stalls"] = dict.fromkeys(layer["stalls"], 0) | {"act": 100 + i, "drain": 7}
        layer["cycles"] = useful + 50 + sum(layer["stalls"].values())
    for name in total["stalls"]:
        total["stalls"][name] = sum(layer["stalls"][name] for layer in report["layers"])
    total["cycles"] = sum(layer["cycles"] for layer in report["layers"])
    total["latency_ms"], total["images_per_second"] = total["cycles"] / 1e5, 2e8 / total["cycles"]
    return report


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text; fails on tags that do not nest."""

    VOID = {"meta", "link", "img", "br", "hr", "input"}

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_waterfall_adds_up(report):
    whole, *losses, useful = pages.waterfall(report)
    cycles, total = report["totals"]["cycles"], report["totals"]
    assert (whole.cycles, whole.before, whole.after) == (cycles, 1.0, 0.0)
    assert [step.before for step in [*losses, useful]] == pytest.approx([1.0, *(step.after for step in losses)])
    assert useful.before == pytest.approx(total["binary_macs"] / total["peak_binary_macs_per_cycle"] / cycles)
    assert sum(step.cycles for step in losses) + useful.cycles == pytest.approx(cycles)
    by_kind = {kind: sum(step.cycles for step in losses if step.kind == kind) for kind in ("stall", "pool", "pad")}
    assert by_kind["stall"] == sum(total["stalls"].values())
    assert by_kind["pool"] == sum(50 for layer in report["layers"] if not layer["macs"]) == 50


def test_a_layer_s_parts_add_up(report):
    for layer in report["layers"]:
        split = pages.parts(layer)
        assert sum(split.values()) == pytest.approx(layer["cycles"]) and min(split.values()) >= 0
        assert (split["pool"] > 0) == (layer["macs"] == 0) and (split["pad"] > 0) == (layer["macs"] > 0)


def test_page_has_the_report_and_fetches_nothing(report):
    text = pages.render(report)
    page = Page(text)
    assert len(text) < 1_500_000
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe") and not {"src", "href", "xlink:href"} & attributes.keys()
    assert "url(" not in text and "http" not in text and "@import" not in text
    assert "Bit-exact: every element of all 5 layers" in page.text
    for layer in report["layers"]:
        assert layer["name"] in page.text and f"{layer['cycles']:,}" in page.text
    assert f"{report['accuracy']['held_out']:.2%}" in page.text and report["config"]["hash"] in page.text


def test_shares_of_energy_add_up(report):
    table = report["totals"]["energy_uj"]
    shares = pages.energy_shares(report)
    assert sum(uj for _, uj in shares) == pytest.approx(table["total"]) and table["total"] > 0
    assert shares[-1][0] == "other" and 0 <= shares[-1][1] < 0.05 * table["total"]
    assert all(uj == table["events"][name]["uj"] for name, uj in shares[:-1])
    text = Page(pages.render(report)).text
    assert all(f"{row['count']:,}" in text and row["source"] in text for row in table["events"].values())


def test_energy_that_was_not_all_counted_is_called_too_low(report):
    assert report["totals"]["energy_uj"]["complete"] and "too low" not in Page(pages.render(report)).text
    report["totals"]["energy_uj"]["complete"] = False
    assert "too low: this machine does not count all events" in Page(pages.render(report)).text


def test_speed_up_is_shown_where_it_was_measured(report):
    assert report["totals"]["speedup_vs_w8a8"] is None and "against W8A8" not in Page(pages.render(report)).text
    report["totals"]["speedup_vs_w8a8"] = {"cycles": 7.654, "energy": 3.21, "twin": "W8A8", "twin_cycles": 10,
                                           "twin_energy_uj": 1.0, "twin_checkpoint": "x", "twin_held_out": 0.5}
    text = Page(pages.render(report)).text
    assert "7.65x speed against W8A8" in text and "3.21x less energy" in text


@pytest.mark.parametrize("value, unit, text", ((3669338, "", "3.67 M"), (2e-5, "J", "20 µJ"), (0, "B", "0 B"), (21, "", "21"),
                                               (999, "B", "999 B"), (4.32e-7, "J", "432 nJ")))
def test_prefixes(value, unit, text):
    assert pages.si(value, unit) == text


def test_differences_and_the_cpu_s_part_are_named(report):
    report["bit_exact"] = report["layers"][2]["bit_exact"] = False
    report["cpu_fallback"] = [{"name": "softmax", "op": "relax.nn.softmax", "reason": "no engine"}]
    text = Page(pages.render(report)).text
    assert f"Not bit-exact: differs from PyTorch in {report['layers'][2]['name']}" in text
    assert "softmax (relax.nn.softmax): no engine" in text and "Bit-exact: every" not in text


def test_every_string_is_escaped(report):
    nasty = "<script>alert('&')</script>"
    report["cpu_fallback"] = [{"name": nasty, "op": nasty, "reason": nasty}]
    report["net"] = report["quant"] = report["level"] = report["layers"][0]["name"] = nasty
    report["accuracy"]["dataset"] = report["config"]["hash"] = nasty
    text = pages.render(report)
    assert nasty not in text and "alert(&#39;&amp;&#39;)" in text
    assert [tag for tag, _ in Page(text).tags].count("script") == 1


def test_the_isa_level_knows_no_cycles(run):
    text = Page((run / "report.html").read_text()).text  # written by `seriatim sim`
    assert "The isa level knows no cycles" in text and "Cycles by layer" not in text


def test_report_verb_writes_the_page(run, tmp_path, capsys):
    target = tmp_path / "new" / "page.html"
    assert cli.main(["report", str(run), "--html", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    assert target.read_text() == pages.render(json.loads((run / "report.json").read_text()))
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]
