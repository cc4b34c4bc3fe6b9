"""Is this sample a draw from that law?

`samples`: distances between points as they are, the share that is copied, what chance alone gives. `features` and
`frechet`: comparisons of features of images. `inception`: the published FID, which needs torch-fidelity. `attributes`:
whether pictures of shapes show what was asked for.
"""

from tinydiff.metrics.attributes import Attributes, Read, attribute_accuracy, described, read_shapes
from tinydiff.metrics.features import (
    AgainstN,
    DensityCoverage,
    Estimate,
    PrecisionRecall,
    against_n,
    density_coverage,
    kid,
    kid_blocks,
    precision_recall,
)
from tinydiff.metrics.frechet import Extrapolated, Moments, frechet_distance, frechet_extrapolated
from tinydiff.metrics.inception import inception_fid, inception_moments, inception_network
from tinydiff.metrics.samples import (
    TwoSample,
    chamfer,
    classifier_two_sample_test,
    digit_accuracy,
    energy_distance,
    floor,
    memorisation,
    mode_weights,
    nearest_distance,
    read_digits,
    sliced_wasserstein,
)
