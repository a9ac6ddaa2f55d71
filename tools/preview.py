"The picture that goes with a link to the documentation"
import matplotlib
matplotlib.use('Agg')
import torch
from matplotlib import pyplot as plt
from torch.nn.functional import binary_cross_entropy_with_logits
from asl import asymmetric_loss_multi_label

def gradient(loss, z):
    "The gradient of `loss` at a negative of logit `z`"
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z, torch.zeros_like(z), reduction='sum'), z)[0]

def draw(path, title, description):
    p = torch.linspace(.002, .998, 499, dtype=torch.double)
    fig = plt.figure(figsize=(12, 6.3), dpi=100)
    ax = fig.add_axes((.08, .14, .88, .56))
    fig.text(.05, .84, title, fontsize=56, weight='bold')
    fig.text(.05, .76, description, fontsize=19)
    losses = {'cross entropy': binary_cross_entropy_with_logits, 'asymmetric loss': asymmetric_loss_multi_label}
    for label, loss in losses.items(): ax.plot(p, gradient(loss, torch.logit(p)), lw=5, label=label)
    ax.set_xlabel('probability given to a label that is absent', fontsize=22)
    ax.set_ylabel('gradient', fontsize=22)
    ax.legend(fontsize=22, frameon=False)
    ax.tick_params(labelsize=16)
    ax.spines[['top', 'right']].set_visible(False)
    fig.savefig(path)
    plt.close(fig)
