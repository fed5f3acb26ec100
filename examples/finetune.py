"""Fine-tune a torchvision model on scikit-learn's digits, with and without chattn_cuda.

    python examples/finetune.py                    # float32, from random weights
    python examples/finetune.py --dtype float64    # the curves coincide
    python examples/finetune.py --weights DEFAULT  # ImageNet's weights, which torchvision downloads

Three copies of the model take each step in turn: one as it is, one accelerated, and one whose
weights are changed by a ten-millionth. In float32 the second leaves the curve of the first by
rounding, as the third does.
"""

import argparse
import copy
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, random_split

import chattn_cuda

try:
    import torchvision
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed: pip install torchvision scikit-learn")

EAGER, FAST, NUDGED = "eager", "accelerated", "eager, weights + 1e-7"
QUARTILES = torch.tensor([0.25, 0.5, 0.75])


def step(model, optimizer, images, labels):
    """Loss and milliseconds of a training step."""
    start = time.perf_counter()
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), 1e3 * (time.perf_counter() - start)  # item() waits for a GPU


def kept(model, images):
    """MiB that a forward pass keeps for the backward pass, weights not counted."""
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(images)
    for weight in model.parameters():
        sizes.pop(weight.untyped_storage().data_ptr(), None)
    del logits  # until here it held them all
    return sum(sizes.values()) / 2**20


@torch.no_grad()
def accuracy(model, batches):
    """Percent of the images that are classified correctly."""
    model.eval()
    right = [model(images).argmax(1) == labels for images, labels in batches]
    return 100 * torch.cat(right).float().mean().item()


def main(argv=None):
    """Train, and print the curves and what was gained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models = ["mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s"]
    parser.add_argument("--model", default=models[0], choices=models)
    parser.add_argument("--weights", help="by torchvision's name, such as DEFAULT")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    args = parser.parse_args(argv)
    place = {"device": args.device, "dtype": getattr(torch, args.dtype)}

    torch.manual_seed(0)
    data = load_digits()  # 1797 images of 8 x 8 pixels, from 0 to 16
    dataset = TensorDataset(torch.tensor(data.images) / 16, torch.tensor(data.target))
    training, test = random_split(dataset, [1297, 500])
    sampler = RandomSampler(training, num_samples=args.steps * args.batch)
    loader = DataLoader(training, args.batch, sampler=sampler)

    def prepared(loader):
        for images, labels in loader:
            images = (images[:, None].expand(-1, 3, -1, -1).to(**place) - 0.45) / 0.225
            images = F.interpolate(images, size=args.size, mode="bilinear")
            yield images.contiguous(memory_format=torch.channels_last), labels.to(args.device)

    model = torchvision.models.get_model(args.model, weights=args.weights)
    model.classifier[-1] = nn.Linear(model.classifier[-1].in_features, 10)
    model = model.to(**place, memory_format=torch.channels_last).train()
    models = {name: copy.deepcopy(model) for name in (EAGER, FAST, NUDGED)}
    print(chattn_cuda.accelerate(models[FAST]))
    with torch.no_grad():
        for parameter in models[NUDGED].parameters():
            parameter.mul_(1 + 1e-7)
    optimizers = {name: torch.optim.SGD(m.parameters(), 0.05, 0.9) for name, m in models.items()}

    losses, times = ({name: [] for name in models} for _ in range(2))
    print(f"\n  step{EAGER:>10}{FAST:>14}{'difference':>13}{NUDGED:>25}{'difference':>13}")
    for number, (images, labels) in enumerate(prepared(loader), 1):
        for name in list(models)[:: 1 if number % 2 else -1]:  # in turn: noise hits all alike
            torch.manual_seed(number)  # the same dropout
            loss, ms = step(models[name], optimizers[name], images, labels)
            losses[name].append(loss)
            times[name].append(ms)
        if number in (1, 2, 5) or number % 10 == 0:
            eager, fast, nudged = (losses[name][-1] for name in (EAGER, FAST, NUDGED))
            print(f"{number:6}{eager:10.4f}{fast:14.4f}{abs(fast - eager):13.1e}", end="")
            print(f"{nudged:25.4f}{abs(nudged - eager):13.1e}")

    print(f"\n{'':12}{'ms a step (quartiles)':>24}{'kept for backward':>20}{'test accuracy':>16}")
    times = {name: torch.tensor(times[name][3:]) for name in models}  # the first ones warm up
    memory = {name: kept(models[name], images) for name in models}
    right = {name: accuracy(models[name], prepared(DataLoader(test, 100))) for name in models}
    for name in (EAGER, FAST):
        low, median, high = times[name].quantile(QUARTILES).tolist()
        timed = f"{median:.1f} ({low:.1f} to {high:.1f})"
        print(f"{name:12}{timed:>24}{memory[name]:16.1f} MiB{right[name]:14.1f} %")
    low, median, high = (times[EAGER] / times[FAST]).quantile(QUARTILES).tolist()
    timed = f"{median:.2f}x ({low:.2f} to {high:.2f})"
    less, better = memory[EAGER] / memory[FAST], right[FAST] - right[EAGER]
    print(f"{'gained':12}{timed:>24}{less:19.2f}x{better:+9.1f} points")


if __name__ == "__main__":
    main()
