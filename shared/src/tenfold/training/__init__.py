"""What every training loop needs, in small pieces; the loop itself stays in the package, where it reads like the paper.

`processes`: one or several processes, which device, whose turn it is to write. `precision`: mixed precision, deterministic
kernels. `schedules`: learning rates. `averaging`: exponential moving averages. `checkpoints`: weights, optimizers and progress in one file.
"""
