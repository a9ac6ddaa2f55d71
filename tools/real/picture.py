"""Pictures and tables of the experiment on real data: differences with their intervals, calibration before and after"""
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .judge import Verdict
from .record import WAYS, Record, by_block, by_set, overall

GREY = '#767676'
BAR = dict(fmt='o', ms=5, lw=1.4, mew=1.4)

def markdown(head, rows) -> str:
    "A table"
    lines = ['| '+' | '.join(map(str, row))+' |' for row in (head, len(head)*['---'], *rows)]
    return '\n'.join(lines)+'\n'

def point(ax, verdict:Verdict, y:float, color:str, **marker):
    "A mean and its interval; filled where the interval leaves out 0"
    filled = color if verdict.word != 'no difference seen' else 'none'
    half = verdict.half if np.isfinite(verdict.half) else 0
    ax.errorbar(verdict.mean, y, xerr=half, color=color, mec=color, mfc=filled, **BAR | marker)

def forest(ax, difference, sets, judged:dict|None=None):
    "A difference by set and way, and over all sets at the bottom; positive is better"
    shift = dict(zip(WAYS, (-.17, .17)))
    colors = dict(zip(WAYS, ('C0', 'C1')))
    for (name, way), verdict in by_block(difference, sets, **judged or {}).items():
        point(ax, verdict, sets.index(name)+shift[way], colors[way])
    for way in WAYS:
        found = overall(difference, sets, [way])
        if found: point(ax, found, len(sets)+.2+shift[way], colors[way], fmt='s')
    found = overall(difference, sets)
    if found: point(ax, found, len(sets)+1.2, GREY, fmt='D')
    ax.axvline(0, color=GREY, lw=1)
    ax.axhline(len(sets)-.4, color=GREY, lw=.6)
    rows = [*range(len(sets)), len(sets)+.2, len(sets)+1.2]
    ax.set(yticks=rows, ylim=(rows[-1]+.6, -.6))
    ax.grid(axis='y', visible=False)

def named(ax, labels):
    "Names for the rows of a forest"
    ax.set_yticklabels([*labels, 'all, by way', 'all sets'])

def key(where):
    "What the colours of a forest mean, above a figure or an axis"
    shapes = ('C0', 'o'), ('C1', 'o'), (GREY, 'D')
    marks = [Line2D([], [], color=color, marker=marker, lw=1.4) for color, marker in shapes]
    names = ['linear layer', 'hidden layer', 'both']
    if isinstance(where, Figure): where.legend(marks, names, loc='outside upper center', ncols=3)
    else: where.legend(marks, names, loc='lower center', bbox_to_anchor=(.5, 1), borderaxespad=.2)

def lines(fig, styles:dict[str, tuple[str, str]]):
    "What the lines of a figure mean: their colours and dashes by name"
    handles = [Line2D([], [], color=color, ls=dashes) for color, dashes in styles.values()]
    fig.legend(handles, [*styles], loc='outside upper center', ncols=2, handlelength=2.4)

def percents(axes):
    "Ticks of log scales that people read, the same in all"
    low = min(ax.get_xlim()[0] for ax in axes)
    high = max(ax.get_xlim()[1] for ax in axes)
    ticks = [tick for tick in (.1, .3, 1, 3, 10, 30, 100) if low <= tick <= high]
    for ax in axes:
        ax.set(xlim=(low, high))
        ax.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
        ax.minorticks_off()

def rates(ax, tried):
    "The same of rates, some of which were tried"
    ticks = sorted(set(tried))
    ticks = ticks[::max(1, len(ticks)//3)]
    ax.set_xticks(ticks, [f'{tick:g}' for tick in ticks], size=9)
    ax.minorticks_off()

def empty(ax):
    ax.text(.5, .5, 'not yet run', transform=ax.transAxes, ha='center')
    ax.set_yticks([])

def calibration(ax, record:Record, sets, loss='ASL + prior', rival='BCE + prior', measure='ECE_sure'):
    "The error of a loss's score and of its posterior by set, ways averaged, and that of the rival's score"
    shown = {'score of ASL': (loss, measure, dict(color='C1', marker='o', ms=6)),
        'its posterior': (loss, measure+'_posterior', dict(color='C0', marker='o', ms=6)),
        'score of BCE': (rival, measure, dict(color=GREY, marker='|', ms=10, mew=2))}
    for label, (name, which, marker) in shown.items():
        means = [mean_of(record, each, name, which) for each in sets]
        ax.plot(means, range(len(sets)), ls='', label=label, zorder=3, **marker)
    before, after = ([mean_of(record, each, loss, measure+end) for each in sets] for end in ('', '_posterior'))
    ax.hlines(range(len(sets)), before, after, color=GREY, lw=1)
    ax.set(xscale='log')

def mean_of(record:Record, name:str, loss:str, measure:str) -> float:
    "Of a set, over its seeds and ways; nan if it was not run"
    return by_set(lambda block: record.test(measure, block, loss), [name]).get(name, float('nan'))

def names(positive:dict[str, float], sets) -> list[str]:
    "Sets with their share of positives"
    return [f'{name}, {positive[name]:.{0 if positive[name] >= 10 else 1}f}%' for name in sets]

def summary(record:Record, sets, labels):
    "The difference in mAP between ASL and cross-entropy, both from the prior, and what the posterior does"
    axes = plt.subplots(1, 2, figsize=(6.4, 4.6), sharey=True)[1]
    calibration(axes[1], record, sets)
    forest(axes[0], record.less('ASL + prior', 'BCE + prior'), sets)
    named(axes[0], labels)
    axes[0].set(xlabel='mAP of ASL less BCE, points')
    axes[1].set(xlabel='calibration error, %')
    percents(axes[1:])
    axes[1].legend(loc='lower center', bbox_to_anchor=(.5, 1), borderaxespad=.2)
    key(axes[0])
