"""A timm training loop with AMP, EMA, channels_last, compile and DDP, with and without chattn_cuda.

    python examples/timm_training.py
    torchrun --nproc-per-node=2 examples/timm_training.py    # DDP: gloo on CPUs, NCCL on GPUs
    python examples/timm_training.py --amp float16 --compile

A model and its accelerated copy learn scikit-learn's digits and take each step in turn.
"""

import argparse
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, random_split

import chattn_cuda

try:
    import timm.optim
    import timm.scheduler
    import timm.utils
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed: pip install timm scikit-learn")

QUARTILES = torch.tensor([0.25, 0.5, 0.75])


class Training:
    """A model, and what belongs to its training."""

    def __init__(self, args, device, updates_per_epoch, accelerate):
        torch.manual_seed(0)
        model = timm.create_model(args.model, num_classes=10, in_chans=1, drop_path_rate=0.1)
        if accelerate:
            self.report = chattn_cuda.accelerate(model)  # before EMA, DDP and compile
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.ema = timm.utils.ModelEmaV3(self.model, decay=0.99, use_warmup=True)
        self.optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=2e-3, weight_decay=0.05)
        self.schedule, _ = timm.scheduler.create_scheduler_v2(
            self.optimizer,
            num_epochs=args.epochs,
            updates_per_epoch=updates_per_epoch,
            step_on_epochs=False,
        )
        dtype = getattr(torch, args.amp)
        self.amp = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        # Gradients in float16 vanish unless the loss is scaled; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
        self.wrapped = torch.compile(wrapped) if args.compile else wrapped
        self.losses, self.times = [], []

    def step(self, images, labels):
        """Forward, backward, update."""
        start = time.perf_counter()
        with self.amp:
            loss = torch.nn.functional.cross_entropy(self.wrapped(images), labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses.append(loss.item())  # waits for a GPU
        self.ema.update(self.model, step=len(self.losses))
        self.schedule.step_update(len(self.losses))
        self.times.append(1e3 * (time.perf_counter() - start))

    @torch.no_grad()
    def accuracy(self, images, labels):
        """Percent of the images that the averaged weights classify correctly."""
        if dist.is_initialized():
            timm.utils.distribute_bn(self.ema, dist.get_world_size(), reduce=True)
        return 100 * (self.ema(images).argmax(1) == labels).float().mean().item()


def main(argv=None):
    """Train both, and print what was gained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="test_efficientnet", help="of timm")
    parser.add_argument("--amp", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--compile", action="store_true", help="both with torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="of each process")
    parser.add_argument("--size", type=int, default=32, help="of the images, in pixels")
    args = parser.parse_args(argv)

    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device(args.device)
    if processes > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    data = load_digits()  # 1797 images of 8 x 8 pixels, from 0 to 16
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    images = torch.nn.functional.interpolate(images, size=args.size, mode="bilinear")
    dataset = TensorDataset(images, torch.tensor(data.target))
    training, test = random_split(dataset, [1297, 500], torch.Generator().manual_seed(0))
    sampler = DistributedSampler(training, processes, rank)
    loader = DataLoader(training, args.batch, sampler=sampler, drop_last=True)

    def prepared(batch):
        images, labels = (tensor.to(device) for tensor in batch)
        return images.contiguous(memory_format=torch.channels_last), labels

    eager = Training(args, device, len(loader), accelerate=False)
    fast = Training(args, device, len(loader), accelerate=True)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for number, batch in enumerate(loader):
            images, labels = prepared(batch)
            for training in (eager, fast) if number % 2 else (fast, eager):
                torch.manual_seed(number)  # the same stochastic depth
                training.step(images, labels)
    test_images, test_labels = prepared(test[:])
    right = [training.accuracy(test_images, test_labels) for training in (eager, fast)]

    if rank == 0:
        print(fast.report)
        how = f"{args.amp}, {'compiled' if args.compile else 'eager'}, {processes} processes"
        print(f"\n{args.model}, {how}, {len(eager.losses)} steps of {args.batch} images each")
        print(f"{'':12}{'ms a step (quartiles)':>24}{'last loss':>12}{'EMA accuracy':>15}")
        warm = len(eager.times) // 4
        times = [torch.tensor(training.times[warm:]) for training in (eager, fast)]
        for name, training, found, percent in zip(
            ("eager", "accelerated"), (eager, fast), times, right, strict=True
        ):
            low, median, high = found.quantile(QUARTILES).tolist()
            timed = f"{median:.1f} ({low:.1f} to {high:.1f})"
            print(f"{name:12}{timed:>24}{training.losses[-1]:12.3f}{percent:13.1f} %")
        low, median, high = (times[0] / times[1]).quantile(QUARTILES).tolist()
        print(f"{'gained':12}{f'{median:.2f}x ({low:.2f} to {high:.2f})':>24}")
    if processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
