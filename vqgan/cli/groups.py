"""`vqgan groups`: a model and images in, how many codes each group of channels is worth out."""

from collections.abc import Sequence

from vqgan.cli.arguments import Parser, add_model_arguments, fraction, positive


def run(argv: Sequence[str]) -> int:
    """Share out codes among groups of channels, by the variance of a trained model's latent."""
    parser = Parser(prog="vqgan groups", description=run.__doc__)
    add_model_arguments(parser)
    parser.add_argument("--groups", type=positive, default=4, metavar="G", help="how many groups (default: 4)")
    parser.add_argument(
        "--bits", type=fraction, default=24.0, metavar="B", help="bits of one place, over all groups (default: 24)"
    )
    parser.add_argument(
        "--smallest", type=positive, default=2, metavar="K", help="fewest codes of a group (default: 2)"
    )
    parser.add_argument(
        "--largest", type=positive, default=1024, metavar="K", help="most codes of a group (default: 1024)"
    )
    parser.add_argument(
        "--size", type=positive, metavar="N", help="short side to N, centre crop N; default: the model's image_size"
    )
    options = parser.parse_args(list(argv))

    from vqgan.inference.groups import Options, show_groups

    switches = vars(options)
    model, source = (switches.pop(name) for name in ("model", "input"))
    return show_groups(model, source, Options(**switches))
