"""An extension of Sphinx: equations as MathML, made when the site is built. Browsers draw it themselves, without a
script; what a formula says stays text that can be searched, read aloud and copied."""
import re
from docutils import nodes
from math_core import LatexError, LatexToMathML

converter = LatexToMathML(annotation=True, fancy_error=False)
numbered = re.compile(r'\\tag\{([^}]*)\}')

def mathml(tex, display):
    "TeX as MathML, which has the TeX as its annotation; a command that is not known ends the build"
    try: return converter.convert_with_local_state(tex, displaystyle=display)
    except LatexError as error: raise ValueError(f'{error} in the equation {tex}') from error

def inline(writer, node):
    "A formula in a line of text"
    writer.body.append(f'<span class="math">{mathml(node.astext(), False)}</span>')
    raise nodes.SkipNode

def block(writer, node):
    "A formula of its own, with the number that its \\tag gives it"
    tex = node.astext()
    number = numbered.search(tex)
    formula = mathml(numbered.sub('', tex).strip(), True)
    shown = f'<span class="eqno">({number[1]})</span>' if number else ''
    writer.body.append(f'<div class="math"><div class="formula">{formula}</div>{shown}</div>\n')
    raise nodes.SkipNode

def setup(app):
    app.add_html_math_renderer('mathml', (inline, None), (block, None))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
