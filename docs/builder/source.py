"""A module's functions and classes with their docments, read without importing it."""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Parameter:
    "A parameter, a field or what is returned."

    name: str
    type: str = ''
    default: str | None = None
    doc: str = ''


@dataclass
class Symbol:
    "A function, a method, a class or a constant."

    name: str
    kind: str  # function, class, method, property or data
    line: int
    doc: str = ''
    signature: str = ''
    parameters: list = field(default_factory=list)
    returns: Parameter | None = None
    members: list = field(default_factory=list)
    value: str = ''


@dataclass
class Module:
    "What a module exports."

    name: str
    path: str  # from the repository's root
    doc: str
    notebook: str  # where it is written, '' if nowhere
    symbols: list


class Comments:
    "The comments of a source, by line, and where a signature ends."

    def __init__(self, source: str):
        self.text, self.alone, self.tokens = {}, set(), []
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                self.text[token.start[0]] = token.string.lstrip('# ').strip()
                if token.line.strip().startswith('#'):
                    self.alone.add(token.start[0])
            elif token.type == tokenize.OP:
                self.tokens.append((token.start, token.string))

    def header_end(self, node) -> int:
        "The line of the colon that ends a signature."
        depth = 0
        for (line, column), text in self.tokens:
            if (line, column) < (node.lineno, node.col_offset):
                continue
            if text in '([{':
                depth += 1
            elif text in ')]}':
                depth -= 1
            elif text == ':' and depth == 0:
                return line
        return node.lineno

    def above(self, line: int) -> str:
        "Comments that fill the lines above."
        lines = []
        while line - 1 in self.alone:
            line -= 1
            lines.append(self.text[line])
        return ' '.join(reversed(lines))


def written(node) -> str:
    "An expression or a type as text."
    if node is None:
        return ''
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value if re.fullmatch(r'[\w.\[\], |]+', node.value) else repr(node.value)
    return ast.unparse(node)


def arguments(node) -> list[tuple[str, ast.arg, ast.expr | None]]:
    "All arguments of a function: prefix, argument, default."
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    out = [('', arg, default) for arg, default in zip(plain, defaults, strict=True)]
    if a.vararg:
        out.append(('*', a.vararg, None))
    out += [('', arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    return out + ([('**', a.kwarg, None)] if a.kwarg else [])


def signature(node, method: bool) -> str:
    "Names and short defaults of a function's parameters."
    parts, a = [], node.args
    keyword_only = {arg.arg for arg in a.kwonlyargs}
    for prefix, arg, default in arguments(node):
        if arg.arg in keyword_only and not a.vararg and '*' not in parts:
            parts.append('*')
        text = ast.unparse(default) if default is not None else ''
        parts.append(prefix + arg.arg + (f'={text if len(text) < 30 else "..."}' if text else ''))
        if a.posonlyargs and arg is a.posonlyargs[-1]:
            parts.append('/')
    return f'({", ".join(parts[1:] if method and parts else parts)})'


def function(node, comments: Comments, method: bool = False) -> Symbol:
    "A function with the comments behind its parameters."
    end, body = comments.header_end(node), node.body[0].lineno
    listed = arguments(node)
    last_on = {(d or arg.annotation or arg).end_lineno: arg.arg for _, arg, d in listed}
    parameters = []
    for prefix, arg, default in listed[1:] if method else listed:
        line = (default or arg.annotation or arg).end_lineno
        doc = comments.text.get(line, '') if last_on[line] == arg.arg and line != end else ''
        doc = doc or (comments.above(arg.lineno) if arg.lineno > node.lineno else '')
        text = ast.unparse(default) if default is not None else None
        parameters.append(Parameter(prefix + arg.arg, written(arg.annotation), text, doc))
    doc = comments.text.get(end, '') if body > end else ''
    returns = (
        Parameter('returns', written(node.returns), None, doc) if doc or node.returns else None
    )
    return Symbol(
        node.name,
        'method' if method else 'function',
        node.lineno,
        ast.get_docstring(node) or '',
        signature(node, method),
        parameters,
        returns,
    )


def class_(node, comments: Comments) -> Symbol:
    "A class: its fields or the parameters of its constructor, and its public methods."
    out = Symbol(node.name, 'class', node.lineno, ast.get_docstring(node) or '')
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            default = ast.unparse(part.value) if part.value else None
            doc = comments.text.get(part.end_lineno, '')
            out.parameters.append(Parameter(part.target.id, written(part.annotation), default, doc))
        elif isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            static = any(ast.unparse(d) == 'staticmethod' for d in part.decorator_list)
            member = function(part, comments, method=not static)
            if part.name == '__init__':
                out.signature, out.parameters = member.signature, member.parameters
            elif not part.name.startswith('_'):
                member.kind = (
                    'property' if 'property' in map(ast.unparse, part.decorator_list) else 'method'
                )
                out.members.append(member)
    return out


def constants(node, comments: Comments) -> list[Symbol]:
    "The names an assignment defines."
    names = [t.id for target in node.targets for t in ast.walk(target) if isinstance(t, ast.Name)]
    value = ast.unparse(node.value) if len(names) == 1 else ''
    doc = comments.text.get(node.end_lineno, '') or comments.text.get(node.lineno, '')
    return [Symbol(n, 'data', node.lineno, doc, value=value) for n in names]


def exported(tree) -> set[str] | None:
    "The names in `__all__`; None where there is none."
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            return set(ast.literal_eval(node.value))
    return None


def read_module(path: Path, root: Path) -> Module:
    "A module's exported symbols, in the order of the source."
    source = path.read_text(encoding='utf-8')
    tree, comments = ast.parse(source), Comments(source)
    names, symbols = exported(tree), []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            symbols.append(function(node, comments))
        elif isinstance(node, ast.ClassDef):
            symbols.append(class_(node, comments))
        elif isinstance(node, ast.Assign):
            symbols += constants(node, comments)
    symbols = [
        s for s in symbols if (s.name in names if names is not None else not s.name.startswith('_'))
    ]
    where = path.relative_to(root).as_posix()
    name = where.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
    notebook = re.search(r'File to edit: \S*?(nbs/\S+\.ipynb)', source)
    return Module(
        name, where, ast.get_docstring(tree) or '', notebook[1] if notebook else '', symbols
    )


def read_package(root: Path, package: str = 'radgen') -> list[Module]:
    "Every module of a package that exports something."
    paths = sorted((root / package).rglob('*.py'))
    modules = [read_module(p, root) for p in paths if p.name != '_modidx.py']
    return [m for m in modules if m.symbols and m.name != package]
