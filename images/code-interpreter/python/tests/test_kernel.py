"""Results of a real kernel that has the formatters."""

import base64
import json

import pytest

PLOT = "import matplotlib.pyplot as plt\n"
IMAGE = "import numpy\nfrom PIL import Image\n" \
    "image = Image.fromarray((numpy.random.rand(16, 16, 3) * 255).astype('uint8'))\n"
OMITTED = "omitted"


def is_png(data):
    return base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


def test_shown_figure_has_png_text_and_chart(kernel):
    data = kernel.run(PLOT + "plt.plot([1, 2], [3, 4])\nplt.show()").only()
    assert is_png(data)
    assert set(data) == {"image/png", "text/plain", "e2b/chart"}
    assert data["e2b/chart"]["type"] == "line"


def test_open_figure_is_shown_at_end_of_cell(kernel):
    data = kernel.run(PLOT + "plt.bar(['a'], [1]);").only()
    assert data["e2b/chart"]["elements"] == [{"label": "a", "group": "Group 0", "value": 1.0}]


def test_boxes_with_old_labels_have_quartiles(kernel):
    code = PLOT + (
        "fig, ax = plt.subplots()\n"
        "ax.boxplot([[85, 90, 78, 92, 88], [95, 89, 76, 91, 84, 87]], labels=['A', 'B'],"
        " patch_artist=True)\n"
        "ax.legend()\nplt.tight_layout()\nplt.show()"
    )
    (data,) = kernel.run(code).results()
    boxes = data["e2b/chart"]["elements"]
    assert [box["label"] for box in boxes] == ["A", "B"]
    assert [box["outliers"] for box in boxes] == [[], [76]]
    assert [box["median"] for box in boxes] == [88, 88]


def test_figure_in_other_format_has_chart(kernel):
    try:
        data = kernel.run(PLOT + "%config InlineBackend.figure_formats = ['svg']\n"
                          "plt.plot([1, 2])\nplt.show()").only()
    finally:
        kernel.run("%config InlineBackend.figure_formats = ['png']")
    assert set(data) == {"image/svg+xml", "text/plain", "e2b/chart"}


def test_uniform_indentation_gives_chart(kernel):
    code = "\n    import matplotlib.pyplot as plt\n\n    plt.plot([1], ['A'])\n    plt.show()\n    "
    assert kernel.run(code).only()["e2b/chart"]["y_scale"] == "categorical"


def test_saved_figure_is_shown_once(kernel):
    data = kernel.run(PLOT + "plt.plot([1, 2])\nplt.savefig('figure.png')\nplt.show()").only()
    assert is_png(data)


def test_large_figure_is_unknown_and_says_omitted(kernel):
    data = kernel.run(PLOT + "plt.plot(range(100_001))\nplt.title('Long')\nplt.show()").only()
    assert data["e2b/chart"] == {"type": "unknown", "title": "Long", "elements": []}
    assert data[OMITTED] == {"e2b/chart": {"points": 100_001, "limit": 100_000}}


def test_frame_has_data_text_and_html(kernel):
    data = kernel.run("    import pandas as pd\n    pd.DataFrame({'a': [1, 2, None]})\n").only()
    assert data["e2b/data"] == {"a": [1.0, 2.0, None]}
    assert set(data) == {"text/plain", "text/html", "e2b/data"}


def test_large_frame_says_omitted(kernel):
    data = kernel.run("import pandas as pd\npd.DataFrame({'a': range(100_001)})").only()
    assert "e2b/data" not in data
    assert data[OMITTED] == {"e2b/data": {"cells": 100_001, "limit": 100_000}}
    # The note belongs to one result.
    assert OMITTED not in kernel.run("pd.DataFrame({'a': [1]})").only()


def test_list_and_dict_have_json(kernel):
    data = kernel.run("import numpy\n{'a': numpy.float64('nan'), 2: [numpy.int64(1)]}").only()
    assert data["application/json"] == {"a": None, "2": [1]}
    assert set(data) == {"text/plain", "application/json"}
    assert kernel.run("[1, 'x']").only()["application/json"] == [1, "x"]


def test_values_without_json_have_text_only(kernel):
    for code in ("[object]", "a = []; a.append(a); a", "{(1, 2): 3}", "[10**30]", "(1, 2)", "7",
                 "'it'"):
        assert set(kernel.run(code).only()) == {"text/plain"}, code


def test_long_list_is_whole_and_says_omitted(kernel):
    data = kernel.run("list(range(100_001))").only()
    assert data["text/plain"].endswith("100000]")
    assert data[OMITTED]["application/json"]["limit"] == 100_000


def test_class_keeps_its_own_json(kernel):
    code = "class Own(list):\n    def _repr_json_(self): return {'own': 1}\nOwn([1])"
    assert kernel.run(code).only()["application/json"] == {"own": 1}


def test_lone_surrogate_does_not_lose_result(kernel):
    assert kernel.run(r"['a\ud800']").only()["application/json"] == ["a\ufffd"]


def test_raw_display_has_one_form(kernel):
    code = "from IPython.display import display\ndisplay({'text/latex': r'\\alpha'}, raw=True)"
    assert set(kernel.run(code).only()) == {"text/latex"}


def test_shown_image_has_png(kernel):
    messages = kernel.run(IMAGE + "image.convert('RGBA').show()\nprint('shown')")
    assert is_png(messages.only())
    assert messages.text("stdout") == "shown\n"


def test_image_as_result_has_png(kernel):
    assert is_png(kernel.run(IMAGE + "image").only())


def test_saved_image_has_png(kernel):
    code = IMAGE + "image.save('test.png')\nprint(Image.open('test.png').size)"
    messages = kernel.run(code)
    assert is_png(messages.only())
    assert messages.text("stdout") == "(16, 16)\n"


def test_image_saved_to_path_object_has_png(kernel):
    code = IMAGE + "from pathlib import Path\nimage.save(Path('other.png'))"
    assert is_png(kernel.run(code).only())


def test_image_saved_to_memory_is_not_displayed(kernel):
    code = IMAGE + "import io\nimage.save(io.BytesIO(), format='png')"
    assert kernel.run(code).results() == []


def test_failing_save_raises_and_displays_nothing(kernel):
    messages = kernel.run(IMAGE + "image.save('/nonexistent/test.png')")
    assert messages.errors() == ["FileNotFoundError"]
    assert messages.results() == []


def test_saves_in_loop_display_limited_number(kernel):
    code = IMAGE + "for i in range(70): image.save('loop.png')"
    assert len(kernel.run(code).results()) == 64
    assert len(kernel.run("image.save('loop.png')").results()) == 1


def test_asyncio_run_works_in_cell(kernel):
    code = (
        "import asyncio\n"
        "async def main(n):\n    await asyncio.sleep(0)\n    print('inside')\n    return n + 1\n"
        "asyncio.run(main(1)) + await main(2)"
    )
    messages = kernel.run(code)
    assert messages.only()["text/plain"] == "5"
    assert messages.text("stdout") == "inside\ninside\n"


def test_asyncio_run_raises_exception_of_coroutine(kernel):
    code = "import asyncio\nasync def fail():\n    1 / 0\nasyncio.run(fail())"
    assert kernel.run(code).errors() == ["ZeroDivisionError"]
    assert kernel.run("import asyncio\nasyncio.run(7)").errors() == ["ValueError"]


@pytest.mark.parametrize("body", [
    "await asyncio.sleep(300)",
    # An interrupt at the very first instruction of a block would not reach its `finally`.
    "\n     n = 0\n     while True: n += 1",
])
def test_asyncio_run_ends_at_interrupt(kernel, body):
    code = (
        f"import asyncio\nasync def long():\n    print('up', flush=True)\n"
        f"    try: {body}\n    finally: ended.append(1)\nended = []\nasyncio.run(long())"
    )
    request = kernel.client.execute(code, allow_stdin=False)
    kernel.wait_for(request, "stream")
    kernel.manager.interrupt_kernel()
    assert kernel.collect(request).errors() == ["KeyboardInterrupt"]
    assert kernel.run("ended").only()["text/plain"] == "[1]"


def test_asyncio_run_in_program_of_its_own_is_pythons(kernel):
    code = (
        "import subprocess, sys\n"
        "program = 'import asyncio; print(asyncio.run(asyncio.sleep(0, 3)))'\n"
        "subprocess.run([sys.executable, '-c', program], capture_output=True, text=True).stdout"
    )
    assert kernel.run(code).only()["text/plain"] == r"'3\n'"


def test_hooks_load_no_library(fresh_kernel):
    code = (
        "import sys\n"
        "[name for name in ('numpy', 'pandas', 'matplotlib', 'PIL') if name in sys.modules]"
    )
    assert fresh_kernel.run("[1, {'a': 2}]").only()["application/json"] == [1, {"a": 2}]
    assert fresh_kernel.run(code).only()["application/json"] == []


def test_failing_hooks_say_nothing_in_cell(fresh_kernel):
    fresh_kernel.run("import wrenn_kernel.frames, wrenn_kernel.charts.plot, pandas\n"
                     "wrenn_kernel.frames._column = wrenn_kernel.charts.plot.charts = None")
    table = fresh_kernel.run("pandas.DataFrame({'a': [1]})").only()
    assert set(table) == {"text/plain", "text/html"}
    figure = fresh_kernel.run(PLOT + "plt.plot([1, 2])\nplt.title('Kept')\nplt.show()").only()
    assert figure["e2b/chart"] == {"type": "unknown", "title": "Kept", "elements": []}


def test_library_sees_its_own_loader(fresh_kernel):
    code = (
        "import PIL.Image, importlib\n"
        "names = [type(PIL.Image.__loader__).__name__, type(PIL.Image.__spec__.loader).__name__]\n"
        "importlib.reload(PIL.Image)\nnames"
    )
    names = fresh_kernel.run(code).only()["application/json"]
    assert names == ["SourceFileLoader"] * 2


def test_variables_are_listed_without_names_of_shell(fresh_kernel):
    code = (
        "import numpy as np, pandas as pd\nclass Thing:\n    def __repr__(self): 1 / 0\n"
        "a = 1; words = 'x' * 1000; array = np.zeros((2, 3)); thing = Thing()\n"
        "table = pd.DataFrame({'c': [1, 2]}); _hidden = 1; things = [thing]\n"
    )
    fresh_kernel.run(code)
    listing = fresh_kernel.run(
        "import json\nfrom wrenn_kernel import inspect_vars as _inspect\n"
        "print(json.dumps(_inspect.variables(get_ipython())))"
    )
    found = {entry["name"]: entry for entry in json.loads(listing.text("stdout"))}
    assert set(found) == {"Thing", "a", "array", "table", "thing", "things", "words"}
    assert found["a"]["type"] == "int" and found["a"]["preview"] == "1"
    assert found["array"]["type"] == "numpy.ndarray"
    assert (found["array"]["size"], found["array"]["shape"]) == (48, [2, 3])
    assert (found["table"]["shape"], found["table"]["preview"]) == ([2, 1], "columns: c")
    assert found["thing"]["preview"] == "<Thing>"
    assert found["things"]["preview"] == "[<Thing>]"
    assert len(found["words"]["preview"]) <= 200
