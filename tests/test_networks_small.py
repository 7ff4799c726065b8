"""The network for small images: shapes, what sees what, and rebuilding it."""

import pytest
import torch

from sdediff.networks import REGISTRY, SmallImageNet


@pytest.mark.parametrize("shape", [(2, 9), (1, 5, 4), (3, 2, 3, 4)])
@pytest.mark.parametrize("values", [1, 3])
def test_it_starts_at_zero_and_has_the_shape_asked_for(shape, values):
    net = SmallImageNet(shape, features=2, hidden=8, channels=8, blocks=1, values=values)
    out = net(torch.randn(4, *shape), torch.zeros(4))
    assert out.shape == (4, *shape) if values == 1 else out.shape == (4, values, *shape)
    assert not out.any()


def test_every_pixel_sees_every_other_after_one_block():
    torch.manual_seed(0)
    net = SmallImageNet((1, 16, 16), features=2, hidden=8, whole_blocks=1, channels=8, blocks=1).double()
    torch.nn.init.normal_(net.output.weight)
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    net(x, torch.zeros(1, dtype=torch.float64))[0, 0, 0, 0].backward()
    assert (x.grad != 0).all()


def test_labels_of_augmentations_reach_both_parts():
    torch.manual_seed(0)
    net = SmallImageNet((1, 4, 4), features=2, hidden=8, channels=8, blocks=1, augment_dim=2)
    for layer in (net.output, net.whole.output):
        torch.nn.init.normal_(layer.weight)
    x, t, labels = torch.randn(1, 1, 4, 4), torch.zeros(1), torch.ones(1, 2)
    for part in (net, net.whole):
        assert torch.equal(part(x, t), part(x, t, augment=0 * labels))
        assert not torch.equal(part(x, t), part(x, t, augment=labels))


def test_rebuilt_from_its_configuration_and_errors_name_what_is_wrong():
    net = SmallImageNet((1, 4, 4), hidden=8, channels=8, blocks=1, num_classes=3, values=2)
    other = REGISTRY["SmallImageNet"](**net.config)
    assert other.config == net.config
    other.load_state_dict(net.state_dict())
    with pytest.raises(ValueError, match=r"give \(B, 1, 4, 4\)"):
        net(torch.zeros(2, 1, 4, 5), torch.zeros(2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="of 1 to 3 axes"):
        SmallImageNet((4,))
