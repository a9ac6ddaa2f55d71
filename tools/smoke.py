"Is the asl that is installed here, from a wheel or an sdist, whole? `python tools/smoke.py`, in any folder"
import subprocess, sys, sysconfig
from importlib.metadata import distribution
from pathlib import Path
import torch, asl

installed = distribution('asymmetric-loss')
package = Path(asl.__file__).resolve().parent
here = Path(__file__).resolve().parents[1]/'asl'
assert package == Path(installed.locate_file('asl')).resolve() != here, f'{package} is not the installed package'
assert installed.version==asl.__version__ and (package/'py.typed').is_file()
heavy = {'timm', 'matplotlib', 'accelerate', 'triton', 'sklearn', 'torchmetrics', 'jax'} & set(sys.modules)
assert not heavy, f'import asl pulls in {heavy}'

loss = asl.AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=.05)
logits, target = torch.tensor([[3., -4., -60.]], requires_grad=True), torch.tensor([[1, 0, 1]])
loss(logits, target).backward()
torch.testing.assert_close(logits.grad, torch.tensor([[-.0044, 0., -1.]]), rtol=0, atol=1e-4)
torch.testing.assert_close(loss.posterior(torch.as_tensor(loss.prior_logit(.3))), torch.tensor(.3))

for command in ('asl_train', 'asl_predict', 'asl_evaluate', 'asl_review', 'asl_bench'):
    subprocess.run([Path(sysconfig.get_path('scripts'))/command, '-h'], check=True, stdout=subprocess.DEVNULL)
print(f'asl {asl.__version__} with torch {torch.__version__}: {package}')
