"""A drawn chart as a part of the page: named as a whole, its marks' tips as titles, what nobody sees left out."""

import re
from xml.etree import ElementTree as ET

from mfu_sdk.provider.pages.charts import Chart
from mfu_sdk.provider.report import words

_NAMESPACES = re.compile(r'\sxmlns(:\w+)?="[^"]*"')
_DECIMALS = re.compile(r"(\.\d)\d+")
_TIP = re.compile(r"#(\d+)")
# A picture that is one image to a reader needs none of these below its root.
_SAID = (
    "aria-label", "aria-roledescription", "aria-hidden", "role", "class", "pointer-events", "font-family",
    "stroke-miterlimit",
)  # fmt: skip


def finish(svg: str, chart: Chart, kind: str = "chart") -> str:
    """The SVG element of `chart` for a page whose style has the class `kind`; scales to the box that it is in."""
    # HTML knows what an <svg> is without a namespace, and the page names no address.
    root = ET.fromstring(_NAMESPACES.sub("", svg))  # noqa: S314 - our own chart's, drawn by us
    width, height = (float(root.attrib.pop(name)) for name in ("width", "height"))
    root.attrib.pop("version", None)
    _tidy(root, chart.tips)
    root.attrib |= {
        "class": kind,
        "viewBox": f"0 0 {width:g} {height:g}",
        "width": f"{width:g}",
        "role": "img",
        "aria-label": words.line(chart.label),
        "focusable": "false",
    }
    return ET.tostring(root, encoding="unicode")


def _tidy(element: ET.Element, tips: tuple[str, ...]) -> None:
    for child in list(element):
        tip = _TIP.fullmatch(child.get("aria-label", ""))
        for name in _SAID:
            child.attrib.pop(name, None)
        for name in ("d", "transform", "x2", "y2"):
            if name in child.attrib:
                child.attrib[name] = _DECIMALS.sub(r"\1", child.attrib[name])
        _tidy(child, tips)
        if _is_nothing(child):
            element.remove(child)
        elif tip is not None and (text := tips[int(tip[1])]):
            ET.SubElement(child, "title").text = words.line(text)
        if child.get("opacity") == "1":
            del child.attrib["opacity"]


def _is_nothing(element: ET.Element) -> bool:
    """Labels that would overlap are drawn with no opacity, frames without a stroke or a fill, groups of neither."""
    if element.tag == "g":
        return not len(element)
    if element.tag == "path":
        return element.get("display") == "none" or not {"fill", "stroke"} & set(element.attrib)
    return element.tag == "text" and element.get("opacity") == "0"
