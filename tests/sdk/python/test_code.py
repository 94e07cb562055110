"""Tests of E2B's official SDK for the code interpreter, unmodified, against our interpreter with real
kernels. `run` starts the interpreter on this machine, and runs the tests straight to its port, through
the platform's proxy by headers, and by names over TLS."""

import asyncio
import os

import e2b
import pytest
from e2b_code_interpreter import AsyncSandbox, Sandbox
from e2b_code_interpreter.charts import BarChart

TEMPLATE = os.environ.get("CODE_TEMPLATE", "base")
# Characters that split lines for some readers, or need two units in UTF-16.
ODD = "a\u2028b\u2029c\x85d\x00e\U0001f600f"


@pytest.fixture(scope="module")
def code():
    box = Sandbox.create(TEMPLATE, timeout=600)
    yield box
    box.kill()


def test_results_have_the_value_its_formats_and_the_count(code):
    result = code.run_code("x = 41\nx + 1")
    assert (result.text, result.error, result.logs.stdout) == ("42", None, [])
    assert code.run_code("x").text == "41"
    assert code.run_code("[1, {'a': None}]").results[0].json == [1, {"a": None}]
    again = code.run_code("x")
    assert again.execution_count == result.execution_count + 3


def test_charts_and_tables_are_objects(code):
    plot = "import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [1, 1])\nplt.ylabel('n (kg)')\nplt.show()"
    shown = code.run_code(plot).results[0]
    assert shown.png and isinstance(shown.chart, BarChart)
    assert shown.chart.y_unit == "kg"
    assert [bar.label for bar in shown.chart.elements] == ["a", "b"]
    table = code.run_code("import pandas as pd\npd.DataFrame({'n': [1.5, float('nan')]})")
    assert table.results[0].data == {"n": [1.5, None]}
    assert table.logs.stderr == []


def test_errors_have_name_value_and_traceback(code):
    error = code.run_code("def f():\n    return 1 / 0\nf()").error
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert "----> 3 f()" in error.traceback


def test_callbacks_hear_each_line_once(code):
    heard = {"out": [], "err": [], "results": [], "errors": []}
    program = "import sys\nprint(1)\nprint(2, file=sys.stderr)\n3"
    result = code.run_code(
        program,
        on_stdout=lambda line: heard["out"].append(line.line),
        on_stderr=lambda line: heard["err"].append(line.line),
        on_result=lambda result: heard["results"].append(result.text),
        on_error=lambda error: heard["errors"].append(error.name),
    )
    assert heard == {"out": ["1\n"], "err": ["2\n"], "results": ["3"], "errors": []}
    assert result.logs.stdout == ["1\n"]


def test_characters_and_long_output_arrive_whole(code):
    assert "".join(code.run_code(f"print({ascii(ODD)}, end='')").logs.stdout) == ODD
    assert code.run_code(f"str({ascii(ODD)}[0:1] + 'é')").text == "aé"
    lines = "".join(code.run_code("for i in range(20_000): print(i, flush=True)").logs.stdout)
    assert lines == "".join(f"{i}\n" for i in range(20_000))
    assert len("".join(code.run_code("print('x' * 10_000_000)").logs.stdout)) == 10_000_001


def test_contexts_keep_their_state_apart(code):
    context = code.create_code_context(language="python", cwd="/usr")
    assert (context.language, context.cwd) == ("python", "/usr")
    assert code.run_code("y = 1\nimport os; os.getcwd()", context=context).text == "/usr"
    assert code.run_code("y").error.name == "NameError"
    assert code.list_code_contexts()[-1].id == context.id
    code.restart_code_context(context)
    assert code.run_code("y", context=context).error.name == "NameError"
    code.remove_code_context(context)
    with pytest.raises(e2b.NotFoundException, match=f"Context {context.id} not found"):
        code.run_code("1", context=context)
    with pytest.raises(e2b.SandboxException, match="cobol"):
        code.run_code("1", language="cobol")


def test_languages_and_variables(code):
    assert code.run_code("console.log([1].length)", language="js").logs.stdout == ["1\n"]
    typed = code.run_code("const s: string = 'ts'; s", language="ts")
    assert typed.text == "ts"
    shell = code.run_code("echo $VALUE", language="bash", envs={"VALUE": "a'b\"c"})
    assert shell.logs.stdout == ["a'b\"c\n"]
    read = "import os; os.environ.get('VALUE', 'none')"
    assert code.run_code(read, envs={"VALUE": "set"}).text == "set"
    assert code.run_code(read).text == "none"


def test_timeout_interrupts_and_keeps_the_state(code):
    code.run_code("z = 5")
    with pytest.raises(e2b.TimeoutException):
        code.run_code("import time; time.sleep(300)", timeout=2)
    assert code.run_code("z", timeout=60).text == "5"


def test_async_half_does_the_same():
    asyncio.run(async_half())


async def async_half():
    box = await AsyncSandbox.create(TEMPLATE, timeout=120)
    try:
        heard = []
        context = await box.create_code_context()
        result = await box.run_code("print('a'); 1 + 1", context=context, on_stdout=heard.append)
        assert result.text == "2" and [line.line for line in heard] == ["a\n"]
        with pytest.raises(e2b.TimeoutException):
            await box.run_code("import asyncio\nawait asyncio.sleep(300)", context=context, timeout=2)
        assert (await box.run_code("2 + 2", context=context)).text == "4"
        await box.remove_code_context(context)
    finally:
        await box.kill()
