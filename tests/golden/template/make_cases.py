#!/usr/bin/env python3
"""Writes cases.jsonl: small templates of our own, rendered by Jinja2 the way transformers sets it up.

Needs jinja2 >= 3.1.6. Run in this folder: python3 make_cases.py
"""

import datetime
import json

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2025, 1, 15, 10, 30, 0)


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_render")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


class Raised(jinja2.exceptions.TemplateError):
    pass


def raise_exception(message):
    raise Raised(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


class Namespace(jinja2.utils.Namespace):
    """As in transformers: no names that start with an underscore."""

    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        Namespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                    extensions=[Generation, jinja2.ext.loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception
env.globals["namespace"] = Namespace
env.globals["strftime_now"] = lambda format: NOW.strftime(format)

V = {
    "s": "Hello, wörld 日本 😀",
    "blank": "  \t padded \n",
    "text": "one two  three\nfour",
    "n": 7,
    "f": 2.5,
    "big": 1e16,
    "none": None,
    "yes": True,
    "no": False,
    "items": [3, 1, 2],
    "words": ["b", "A", "c", "B"],
    "nested": {"a": {"b": [10, {"c": "deep"}]}, "list": [[1, 2], [3]]},
    "d": {"z": 1, "a": "é", "items": "shadowed", "m": None},
    "people": [
        {"name": "Ann", "age": 31, "tags": ["x"], "role": "user"},
        {"name": "bob", "age": 25, "tags": [], "role": "assistant"},
        {"name": "Cy", "age": 31, "role": "user"},
    ],
    "html": "<a href=\"x\">'&'</a>",
    "quotes": "it's \"both\"\\ \n\t\x01",
    "messages": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo", "tool_calls": []},
    ],
}

EXPRESSIONS = r"""
1 + 2 * 3 ** 2 - 4 / 2
7 // 2, -7 // 2, 7 % 3, -7 % 3, 7 % -3, -7.5 % 2, 7.5 // -2
2 ** -1, 2 ** 10, 2.0 ** 3, 10 / 4, 9007199254740993 + 0
1_000, 0x1f, 0b101, 0o17, 1.5e3, 1e-7, 1_0.5
1.0, 0.1 + 0.2, 1e16, 123456789012345680.0, 1e22, 5e-324, 100000.0, -0.0
true, false, none, True, False, None
1 == 1.0, 1 == true, "1" == 1, none == false, [1, 2] == [1, 2], (1, 2) == [1, 2], {"a": 1} == {"a": 1.0}
1 < 2 < 3, 1 < 3 < 2, 3 > 2 >= 2, "a" < "b", [1, 2] < [1, 3], 1 != 2
"a" in "cat", "x" not in "cat", 2 in items, "z" in d, 9 in (1, 2), "q" in missing
not n, not not n, not missing, n and s, none or "x", 0 or false or "last", [] and 1
"yes" if n > 3 else "no", "only" if n > 30, ("a" if false) is undefined
"a" ~ 1 ~ none ~ 2.0 ~ [1, "x"] ~ missing
"ab" * 3, [1] * 2, 3 * "x", "x" * 0, "x" * -1, (1,) * 2
[1] + [2], (1,) + (2,), "a" + "b"
[1, 2.5, "x", none, true, [1], (1,), (), {"k": "v"}, {}]
{"a": 1, "b": [1, 2], 3: "three", none: 0, true: 1, "quote'": '"'}
{1: "a", true: "b", 1.0: "c"}
quotes, [quotes], html, [html]
[s, "\x7f\u200b\xad\u00e9\u3000"]
s|length, s|upper, s|lower, s|title, s|capitalize, "ß"|upper, "ǆ"|title
s[0], s[-1], s[1:4], s[::-1], s[-3:], s[:-1], s[::2], s[100:], s[5:2], s[99]
items[0], items[-1], items[1:], items[::-1], items[:-1], items[-2:], items[5], items[::-2], items[10:0:-1]
nested.a.b[1].c, nested["a"]["b"][0], nested.list[0][1], nested.missing, nested.missing is defined
d.z, d["z"], d.items, d["items"], d.keys(), d.values()|list, d.get("z"), d.get("q"), d.get("q", 5)
d|items|list, d.items()|list, d|dictsort, d|list, d|length, d.items()|length
nested.list|first|first, []|first, items|last, []|last, "abc"|first, "abc"|last
text.split(), text.split(" "), text.split("\n", 1), text.split(maxsplit=1), text.rsplit(" ", 1), "".split(), "".split(",")
"a,b,,c".split(","), "a,b,c".rsplit(",", 1)[0], "abc".split("abc"), " a b ".split(none, 1)
blank.strip(), blank.lstrip(), blank.rstrip(), "xxaxx".strip("x"), "abcba".lstrip("ab"), blank|trim, "..a."|trim(".")
s.startswith("Hell"), s.endswith("😀"), s.startswith(("x", "H")), "abc".startswith("b", 1), "abc".endswith("b", 0, 2)
s.replace("l", "L"), s.replace("l", "L", 1), "abc".replace("", "-"), s|replace("l", "L"), s|replace("l", "L", 1), n|replace(7, 8)
s.find("w"), s.find("日"), s.rfind("l"), s.index("o"), s.count("l"), s.find("zz"), "aaa".count("aa"), "abcabc".find("c", 3)
"-".join(["a", "b"]), ["a", 1, none]|join("-"), people|join(", ", attribute="name"), "abc"|join("."), []|join
"a-b-c".partition("-"), "a-b-c".rpartition("-"), "abc".partition("x"), "abc".rpartition("x")
"a\nb\r\nc\n".splitlines(), "a\nb".splitlines(true), "a b".title(), "they're bill's".title(), "they're bill's"|title, "x-y (z)"|title
"abc".isalpha(), "a1".isalnum(), "12".isdigit(), "²".isdigit(), "½".isnumeric(), "12".isdecimal(), " \t".isspace(), "Ab".istitle(), "AB".isupper(), "ab".islower(), "".isalpha(), "1a".isidentifier()
"ab".center(7, "*"), "ab".ljust(5, "."), "ab".rjust(5), "-42".zfill(6), "abc"|center(8), "abc".center(6, "-"), "abcd".center(7, "-")
"Hello".swapcase(), "HELLO".casefold(), "prefix_x".removeprefix("prefix_"), "x.py".removesuffix(".py"), "a\tb".expandtabs(4)
"{} and {}".format(1, "two"), "{0}{1}{0}".format("a", "b"), "{name:>8}|{n:05d}|{f:.2f}".format(name="x", n=42, f=3.14159), "{{}}".format()
"{a[k]} {b.z} {c[0]}".format(a={"k": 1}, b=d, c=items), "{:,} {:x} {:b} {:e} {:%}".format(1234567, 255, 5, 12345.678, 0.25), "{!r:>6}".format("a"), "{:*^9}".format("mid")
"{:<5}|{:>5}|{:^5}|{:+}|{: }".format("a", "b", "c", 3, 4), "{:08.3f}".format(-3.14159), "{:g} {:g}".format(1e10, 0.0001), "{:.3}".format("abcdef"), "{:,.2f}".format(1234567.891), "{:#x}".format(255)
"%s %d %5.2f %x" % ("a", 3, 2.5, 255), "%s" % "one", "%(k)s!" % {"k": "v"}, "%%", "%5s|%-5s|%05d" % ("a", "b", 42), "%r" % ("q",)
"%s and %s"|format("a", 1), "%.3f"|format(2), "%e" % 12345.678, "%g" % 0.00001, "%i" % 3.9, "%c%c" % ("a", 98), "%+d" % 5
n|string, f|string, none|string, true|string, items|string, missing|string
n|float, "3.7"|int, "12"|int, "x"|int, "x"|int(9), "0x1f"|int(base=16), "ff"|int(0, 16), 3.99|int, -3.99|int, "1e3"|float, "x"|float(1.5), " 42 "|int, "4_2"|int, none|int, true|int
f|round, 2.675|round(2), 1234.5|round(-2), 2.5|round, 3.5|round, 2.1|round(0, "ceil"), 2.9|round(method="floor"), 5|round, -2.5|round
-5|abs, (-5)|abs, -2.5|abs, items|sum, people|sum(attribute="age"), [1.5, 2]|sum(start=10), [[1],[2]]|sum(start=[])
items|sort, words|sort, words|sort(case_sensitive=true), items|sort(reverse=true), people|sort(attribute="age")|map(attribute="name")|list, people|sort(attribute="age,name")|map(attribute="name")|list, people|sort(true, attribute="age")|map(attribute="name")|list
items|min, items|max, words|min, words|max, people|max(attribute="age"), []|min is undefined
words|unique|list, [1, 1.0, true, 2]|unique|list, people|unique(attribute="age")|map(attribute="name")|list, "aAb"|unique|list
items|reverse|list, "abc"|reverse, items|list, "abc"|list, (1, 2)|list, d|list
people|map(attribute="name")|list, people|map(attribute="tags.0", default="-")|list, words|map("lower")|list, words|map("replace", "A", "Z")|list, people|map(attribute="tags", default=[])|list
people|selectattr("tags")|map(attribute="name")|list, people|selectattr("age", "gt", 30)|map(attribute="name")|list, people|rejectattr("role", "equalto", "user")|map(attribute="name")|list, people|selectattr("tags", "undefined")|list|length
items|select("odd")|list, items|reject("odd")|list, [0, 1, "", "x"]|select|list, [0, 1]|reject|list, items|select("in", [1, 2])|list, none|select("odd")|list
people|groupby("age")|map("first")|list, people|groupby("role")|length
[1,2,3,4,5]|batch(2)|list, [1,2,3]|batch(2, "-")|list, [1,2,3,4,5]|slice(2)|list, [1,2,3]|slice(2, "-")|list
d|tojson, [1, 2.0, 1e16, "é\n\"", none, true, {}, []]|tojson, d|tojson(indent=2), items|tojson(separators=(",", ":")), d|tojson(sort_keys=true, indent=4), "é😀"|tojson(ensure_ascii=true), {1: 2, none: 3, true: 4, 1.5: 5}|tojson, (1, 2)|tojson, [[], {}]|tojson(indent=2)
missing|default("x"), none|default("x"), none|default("x", true), ""|d("y", boolean=true), n|default(1), missing|default
html|e, html|escape, html|safe, ("<"|safe) + "<", "<" + ("<"|safe), html|e|e, html|forceescape, (html|safe)|string + "&", "%s"|safe|format("<"), "a"|safe ~ "<"
text|wordcount, "a b&c/d"|urlencode, {"a": "1 2", "b": "é"}|urlencode, "foo bar baz qux"|truncate(9), "foo bar baz qux"|truncate(9, true), "foo bar baz qux"|truncate(11), "foo bar baz qux"|truncate(11, false, "..", 0)
"a\nb\n\nc"|indent, "a\nb"|indent(2, true), "a\n\nb"|indent(blank=true), "a\nb"|indent(">>"), "a\nb\n"|indent(1), ""|indent
n is number, n is integer, f is float, true is integer, true is number, s is string, none is none, d is mapping, items is sequence, s is sequence, d is sequence, d is iterable, n is iterable, items is mapping, missing is sequence, missing is iterable
missing is defined, missing is undefined, n is defined, n is odd, n is even, n is divisibleby 7, n is divisibleby(2), 1 is eq 1, 1 is ne 2, 3 is gt 2, 3 is ge(3), 1 is lt 2, 1 is in [1], "x" is equalto "x", true is true, false is false, 1 is true, true is boolean, "ab" is lower, "AB" is upper, range is callable, n is callable, n is sameas n, "a" is not string, n is not none
n is not odd or n is string, not n is odd, n is odd and f is float
range(5)|list, range(2, 5)|list, range(5, 0, -2)|list, range(0), range(3), range(1, 9, 3), range(3)|length, range(5)[1:3]|list, 3 in range(5)
dict(a=1, b=2), dict([("x", 1)]), dict(d)|length, dict({"q": 1}, r=2)
namespace(a=1).a, namespace(a=1).b is defined, namespace(a=[1])
strftime_now("%d %b %Y"), strftime_now("%Y-%m-%d %H:%M:%S %A %B %j %p %y"), strftime_now("%-d/%-m"), strftime_now("")
loop is defined, caller is defined, varargs is defined, raise_exception is defined
"a" "b" 'c', "\n\t\x41\u00e9\U0001F600\101\q\\", 'it''s'
d.items is mapping, d.items is callable, messages.append is defined, s.append is defined, d.pop is defined
items.index(2), items.count(3), (1, 2, 1).count(1), items.copy(), d.copy() == d
items|length > 2 and d|length, -n|abs, (n)|abs, n|abs - 1, "%d" % n|abs
[1, [2, [3]]]|string|length, [none, true]|join, {"a": [1]}|string
"x" if missing else "y", missing.x is defined if missing else "guarded", (missing|default({})).x is defined
s|first ~ s|last, s|list|length, "日本"|urlencode
people[0]["name"], people[-1].name, people[0].tags[0], people[1].tags[0] is defined, people|length, people[1:]|length
(1, 2), (1,), (), 1, ["a"][0], {"k": {"j": 1}}.k.j, [[1, 2], [3]][0][1]
1 if 0 else 2 if 0 else 3, (1 if 1 else 2) + 1, not 1 == 2, 1 + -1, - 1, +1, --1
"a" < "B", "é" > "z", "😀" > "￿", [] < [1], (1, "a") < (1, "b"), 0.5 < 1
"abc"[1], "abc"[1:][0], ("abc"|upper)[0], "abc".upper()[::-1], items[n - 6], items["0"] is defined, d[0] is defined
9223372036854775807 + 1, 9223372036854775807 * 9223372036854775807, -9223372036854775807 - 5, 2 ** 100
"a" is string, "a" is mapping, [] is none, {} is mapping, [] is iterable, 1.0 is integer, none is defined, none is string
html|striptags is defined if false else "lazy"
"Hello World" | replace("World", "X") | upper | length
nested|attr("a") is defined, d|attr("keys") is callable, namespace(x=4)|attr("x")
true + true, true * 3, -true, 1 + 1.5, false < true, [true, 1, 1.0]|unique|list|length
"tab\there", "new\nline"|length, "a\
b"
"%s|%s" % (none, true), "%s" % [1, 2], "%s" % d.z, "%5.1f%%" % 99.55
1e400|string if false else "no", "inf"|float, "nan"|float, -("inf"|float), "1e999"|float, "1_0"|float
"abc"|map("upper")|join, d|map("upper")|list, items|map("string")|join("+")
"%s|" % missing, "a,b" % items, missing|last is undefined, missing is callable, missing|last, 0|map("upper")|list, true|round, (items|truncate(5)) == items
("<a b>"|safe).split()[0] + "<", ("<a>"|safe).upper() + "<", ("<a>"|safe).strip() ~ "<", ["<a>"|safe]
"İ"|lower|length, "ΑΣ"|lower, "ﬁ"|upper, "straße"|capitalize, "ŉ"|upper
""" .strip("\n")

STATEMENTS = [
    # Blank control
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "a\n  {%+ if true %}\n  b\n  {%+ endif %}\nc",
    "a  {%- if true -%}  b  {%- endif -%}  c",
    "{{ 1 }}\n{{ 2 -}}\n  {{- 3 }}\n\n",
    "  {{ 1 }}\n  {# comment #}\n  x {# c #} y\n{#- d -#}  z",
    "{# multi\nline {{ 1 }} {% if %} #}after",
    "a {#- x #} b {# y -#} c {#+ z +#}\nd",
    "{% raw %}{{ x }} {% if %}{% endraw %}!",
    "a\n  {%- raw -%}  {{ x }}  {%- endraw -%}  b\n",
    "{% raw %}\n  x\n  {% endraw %}\ny",
    "line\r\nnext\rthird\n",
    "\n\nx\n\n",
    "{% if true %}\n\n  x{% endif %}\n\ny",
    "{% if true -%}\n   x\n{%- endif %}\n  z",
    "  {% set x = 1 %}  \n  {{ x }}",
    "x{% if true +%}\n y{% endif +%}\n z",
    "{{ '}}' }}{{ \"%}\" }}{{ {'a': {'b': 1}}['a'] }}",
    "{{\n 1\n +\n 2 }}",
    "{ { % } #} {",
    "{{-1}} {{- 1 }} {{ -1 -}} x",
    "\t{% if true %}\tx\t{% endif %}\t\ny",
    "\u00a0{%- if true %}\u3000{% endif %}",
    # if
    "{% if n > 10 %}a{% elif n > 5 %}b{% elif n > 1 %}c{% else %}d{% endif %}",
    "{% if missing %}a{% else %}b{% endif %}{% if '' or [] or {} or 0 or 0.0 or none %}c{% endif %}",
    "{% if n %}{% if f %}x{% endif %}{% endif %}",
    # for
    "{% for x in items %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ x }};{% endfor %}",
    "{% for x in items %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}",
    "{% for x in items %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }} {% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }} {% endfor %}{% for k in d %}{{ k }}{% endfor %}",
    "{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for x in [] %}a{% else %}empty{% endfor %}{% for x in missing %}a{% else %}undef{% endfor %}",
    "{% for x in items if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% else %}none{% endfor %}",
    "{% for x in items if x > 100 %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}!",
    "{% for x in [1,2] %}{% for y in [3,4] %}{{ loop.index }}{{ x }}{{ y }}{% if y == 3 %}{% continue %}{% endif %}|{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in 'héy' %}[{{ x }}]{% endfor %}",
    "{% for x in items %}{{ loop.cycle('odd', 'even') }}{{ loop.changed(x > 1) }} {% endfor %}",
    "{% for x in [[1,[[2,[]]]]] recursive %}{{ x[0] }}({{ loop.depth }}{{ loop(x[1]) }}){% endfor %}",
    "{% for i in items[::-1] %}{{ i }}{% endfor %}{% for i in (1, 2) %}{{ i }}{% endfor %}",
    "{% for m in messages[1:] %}{{ m.role }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(n=0, l=[]) %}{% for i in items %}{% set ns.n = ns.n + i %}{% set ns.l = ns.l + [i] %}{% endfor %}{{ ns.n }} {{ ns.l }}",
    "{% for x in items %}{% set y = x %}{% endfor %}{{ y is defined }}{{ x is defined }}{{ loop is defined }}",
    "{% for item in items %}{{ item }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}",
    # set, with
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = 1, %}{{ c }}{% set (e, f) = [3, 4] %}{{ e }}{{ f }}",
    "{% set body %}x{{ n }}\n y{% endset %}[{{ body }}]{% set up | upper | trim %} abc {% endset %}[{{ up }}]",
    "{% with a = 1, b = n %}{{ a }}{{ b }}{% set a = 9 %}{{ a }}{% endwith %}{{ a is defined }}",
    "{% if true %}{% set inner = 1 %}{% endif %}{{ inner }}",
    # macros
    "{% macro m(a, b=2, c=a) %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, c=3) }} {{ m(b=5, a=0) }} {{ m() }}|",
    "{% macro m(x) %}{{ x }}{% if x > 0 %},{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(3) }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, k=3) }}{{ m.name }}",
    "{% macro wrap(tag) %}<{{ tag }}>{{ caller() }}</{{ tag }}>{% endmacro %}{% call wrap('b') %}in {{ n }}{% endcall %}",
    "{% macro each(l) %}{% for i in l %}{{ caller(i, loop.index) }}{% endfor %}{% endmacro %}{% call(x, i=0) each(items) %}[{{ x }}{{ i }}]{% endcall %}",
    "{% macro m() %}{{ later }}{% endmacro %}{% set later = 'late' %}{{ m() }}",
    "{% set v = 'outer' %}{% macro m(v) %}{{ v }}{% set v = 'in' %}{{ v }}{% endmacro %}{{ m('arg') }}{{ v }}",
    "{% macro m(a) %}{{ a|upper }}{% endmacro %}{{ m('x') + 'y' }}{{ m('z')|length }}{{ ['p', 'q']|map('upper')|join }}",
    "{% macro outer() %}{% macro inner() %}i{% endmacro %}{{ inner() }}o{% endmacro %}{{ outer() }}",
    "{% for x in [1, 2] %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}",
    # blocks
    "{% filter upper %}abc {{ n }}{% endfilter %}{% filter trim | replace('a', 'b') %} aaa {% endfilter %}",
    "{% generation %}x{{ n }}{% endgeneration %}\n{% generation -%} y {%- endgeneration %}!",
    "{% block title %}t{{ n }}{% endblock %}{% block b %}u{% endblock b %}",
    "{% print n, 'x' %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{{ loop.index }}{% endgeneration %}{% endfor %}",
    # as chat templates do it
    "{%- if messages[0]['role'] == 'system' -%}\n    {%- set system = messages[0]['content'] | trim -%}\n    {%- set rest = messages[1:] -%}\n{%- endif -%}\n{{- '<<' + system + '>>\\n' -}}\n{%- for m in rest %}\n    {{- '[' + m.role + ']' + m.content }}\n    {%- if m.tool_calls is defined and m.tool_calls %}T{% endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}[assistant]{% endif %}\n",
    "{% for message in messages %}\n{{ '<|' + message['role'] + '|>' }}\n{{ message['content'] | trim }}\n{% if loop.last and message.role != 'user' %}\nend\n{% endif %}\n{% endfor %}\n",
    "{%- macro render(v, depth) %}\n    {%- if v is mapping %}\n        {%- for k, x in v | dictsort %}{{ k }}:{{ render(x, depth + 1) }};{% endfor %}\n    {%- elif v is iterable and v is not string %}\n        {%- for x in v %}[{{ render(x, depth + 1) }}]{% endfor %}\n    {%- else %}{{ v | tojson }}{{ depth }}{% endif %}\n{%- endmacro %}\n{{- render(nested, 0) }}",
    "{%- set ns = namespace(last=-1) %}{%- for m in messages[::-1] %}{%- set i = (messages|length - 1) - loop.index0 %}{%- if ns.last < 0 and m.role == 'user' %}{%- set ns.last = i %}{%- endif %}{%- endfor %}{{ ns.last }}",
    "{{ raise_exception('no ' ~ n ~ ' of these: é') if n == 7 }}",
    "{% if messages|length > 2 %}{{ raise_exception('Roles must alternate') }}{% endif %}",
    # Errors
    "{{ missing.attribute }}",
    "{{ missing['key'] }}",
    "{{ missing() }}",
    "{{ missing + 1 }}",
    "{{ missing < 1 }}",
    "{{ none.x.y }}",
    "{{ 'a' + 1 }}",
    "{{ 1 + 'a' }}",
    "{{ [1] + (2,) }}",
    "{{ 1 < 'a' }}",
    "{{ none < 1 }}",
    "{{ 1 in 5 }}",
    "{{ 1 in 'a' }}",
    "{{ 1 / 0 }}",
    "{{ 1 % 0 }}",
    "{{ 'a' - 'b' }}",
    "{{ none|length }}",
    "{{ 5|list }}",
    "{{ 5|join }}",
    "{{ n() }}",
    "{{ items.append(1) }}",
    "{{ d.update({'a': 1}) }}",
    "{{ d.pop('z') }}",
    "{{ missing|tojson }}",
    "{{ range|tojson }}",
    "{{ {'k': missing}|tojson }}",
    "{{ {(1,): 1}|tojson }}",
    "{{ {[]: 1} }}",
    "{{ s.index('zz') }}",
    "{{ ','.join([1]) }}",
    "{{ s.split('') }}",
    "{{ s.nothing() }}",
    "{{ s.strip(1) }}",
    "{{ items[::0] }}",
    "{{ d.m[1:] }}",
    "{{ '%d' % 'x' }}",
    "{{ '%s %s' % ('a',) }}",
    "{{ '%s' % ('a', 'b') }}",
    "{{ '{} {}'.format(1) }}",
    "{{ '{x}'.format(y=1) }}",
    "{{ '{:d}'.format('x') }}",
    "{% for a, b in [(1, 2, 3)] %}{% endfor %}",
    "{% for a in 5 %}{% endfor %}",
    "{% for a in none %}{% endfor %}",
    "{% set a, b = [1] %}",
    "{% set n.x = 1 %}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{% endmacro %}{{ m(z=2) }}",
    "{% for x in items %}{{ loop(1) }}{% endfor %}",
    "{{ words|sort|first + 1 }}",
    "{{ [1, 'a']|sort }}",
    "{{ [1, none]|max }}",
    "{{ 5|items }}",
    "{{ 5|dictsort }}",
    "{{ range(1, 2, 0) }}",
    "{{ range('a') }}",
    "{{ namespace(_x=1) }}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{{ [d.m, n][0][1:] }}",
    "{{ s.__class__.__mro__ }}",
    "{{ ''.__class__() }}",
    "{{ s.format.__globals__ }}",
    "{{ (items|map('upper')).foo() }}",
    "{{ items|map('nofilter')|list }}",
    "{{ -s }}",
    "{{ '%s' }",
    "{% if %}x{% endif %}",
    "{% if n %}x",
    "{% for x items %}{% endfor %}",
    "{% endfor %}",
    "{% nosuchtag %}",
    "{{ 1 +  }}",
    "{{ (1 }}",
    "{{ 1) }}",
    "{{ [1, }}",
    "{{ 'abc }}",
    "{{ a b }}",
    "{{ 1 = 2 }}",
    "{% set 1 = 2 %}",
    "{% set true = 2 %}",
    "{% macro m(a=1, b) %}{% endmacro %}",
    "{{ f(a=1, 2) }}",
    "{{ x.1.y.'z' }}",
    "{{ $ }}",
    "{# open",
    "{% raw %}open",
    "{% break %}",
    "{{ 012 }}",
    "{{ n is }}",
    "{{ n | }}",
    "{% call n %}{% endcall %}",
    "{% set x %}open",
    "{{ '\\x4' }}",
    "{{ {1, 2} }}",
    "{{ n is odd is even }}",
    "{{ lambda: 1 }}",
    "{{ n.}}",
]


def main():
    templates = []
    pending = ""
    for line in EXPRESSIONS.split("\n"):
        pending += line
        if pending.endswith("\\"):
            pending += "\n"
            continue
        templates.append("{{ [" + pending + "] }}" if not pending.startswith("html|strip")
                         else "{{ " + pending + " }}")
        templates.extend("{{ " + part + " }}" for part in [pending])
        pending = ""
    templates += STATEMENTS
    rows = []
    for template in templates:
        row = {"template": template}
        try:
            row["expected"] = env.from_string(template).render(**V)
            if " at 0x" in row["expected"]:
                continue  # an address
        except Raised as error:
            row["raises"] = str(error)
        except Exception as error:  # the class is Python's; that it fails is what counts
            row["error"] = type(error).__name__
        rows.append(row)
    with open("cases.jsonl", "w", encoding="utf-8", newline="\n") as out:
        out.write(json.dumps({"variables": V, "now": NOW.isoformat()}, ensure_ascii=False) + "\n")
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(len(rows), "cases, jinja2", jinja2.__version__)


if __name__ == "__main__":
    main()
