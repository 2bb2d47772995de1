"""What a client does in Flower's simulation (with_flower.py); a module of its own, so that Ray's actors import it and keep what it has read."""
import functools

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import work

cnn, quadratic = ClientApp(), ClientApp()


@functools.cache
def images():
    import torch
    torch.set_num_threads(1)  # an actor has one core
    x, y = (torch.from_numpy(a) for a in work.images("train"))
    return x, y, work.shards(work.CNN["clients"]), work.make_net()


@cnn.train()
def train_cnn(message: Message, context: Context):
    import torch
    x, y, shards, net = images()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimiser = torch.optim.SGD(net.parameters(), lr=work.CNN["lr"])
    mine = shards[int(context.node_config["partition-id"])]
    order = torch.from_numpy(mine)[torch.randperm(len(mine))]
    for batch in order.split(work.CNN["batch"]):
        optimiser.zero_grad()
        net.loss(x[batch], y[batch]).backward()
        optimiser.step()
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": len(mine)})})
    return Message(content=content, reply_to=message)


@quadratic.train()
def train_quadratic(message: Message, context: Context):
    x = message.content["arrays"].to_numpy_ndarrays()[0].copy()
    diagonal, b = work.quadratic(int(context.node_config["partition-id"]))
    for _ in range(work.QUADRATIC["steps"]):
        x -= work.QUADRATIC["lr"] * diagonal * (x - b)
    content = RecordDict({"arrays": ArrayRecord([np.asarray(x)]), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)
