"""Filling a network from a state dict in memory, in whichever layout."""

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.models import Autoencoder, AutoencoderConfig, UNet, UNetConfig, load_state

CONFIG = UNetConfig(model_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_at=(2,))
STAGE = AutoencoderConfig(channels=32, channel_mult=(1, 1), num_res_blocks=1)


def tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.full(tensor.shape, 1.0) for name, tensor in network.state_dict().items()}


def test_the_network_s_part_of_a_whole_file_is_taken():
    whole = {f"model.diffusion_model.{name}": 2 * tensor for name, tensor in tensors(UNet(CONFIG)).items()}
    whole |= {f"first_stage_model.{name}": 3 * tensor for name, tensor in tensors(Autoencoder(STAGE)).items()}
    unet, stage = UNet(CONFIG), Autoencoder(STAGE)
    load_state(unet, whole)
    load_state(stage, whole)
    assert all((tensor == 2).all() for tensor in unet.state_dict().values())
    assert all((tensor == 3).all() for tensor in stage.state_dict().values())


def test_parameters_stay_the_same_objects_and_share_nothing_with_the_state_dict():
    network = UNet(CONFIG).double()
    before = dict(network.named_parameters())
    given = {name: tensor.double() / 3 for name, tensor in tensors(network).items()}
    load_state(network, given)
    assert all(before[name] is parameter for name, parameter in network.named_parameters())
    assert all(torch.equal(parameter, given[name]) for name, parameter in network.named_parameters())
    given["out.0.weight"].zero_()
    assert network.out[0].weight.all()


def test_any_other_module_is_filled_by_its_own_names():
    layer = torch.nn.Linear(2, 2)
    load_state(layer, tensors(layer))
    assert (layer.weight == 1).all()
    with pytest.raises(UserError, match="the state dict does not fit this architecture: 1 missing: bias"):
        load_state(layer, {"weight": torch.zeros(2, 2)})


def test_nothing_is_changed_where_something_does_not_fit():
    network = UNet(CONFIG)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    given = tensors(network)
    del given["out.2.bias"]
    with pytest.raises(UserError, match=r"1 missing: out\.2\.bias"):
        load_state(network, given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
