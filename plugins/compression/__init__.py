"""Compression of a trained model, one file each. This module is light: listing does not import torch."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    """Return the entries of this track."""
    return [
        Entry(
            name="eora",
            target="bench.plugins.compression.eora:EoRA",
            track="compression",
            paper="arXiv:2410.21271",
            summary="branch that repairs outputs of a compressed weight, in the eigenspace of its inputs",
        ),
        Entry(
            name="fwsvd",
            target="bench.plugins.compression.fwsvd:FWSVD",
            track="compression",
            paper="arXiv:2207.00112",
            summary="low rank, input features weighted by squared gradients of the loss",
        ),
        Entry(
            name="magnitude-pruning",
            target="bench.plugins.compression.magnitude_pruning:MagnitudePruning",
            track="compression",
            paper="arXiv:2010.07611",
            summary="zeros for the smallest weights: of a matrix, of all, or by LAMP's score",
        ),
        Entry(
            name="sparsegpt",
            target="bench.plugins.compression.sparsegpt:SparseGPT",
            track="compression",
            paper="arXiv:2301.00774",
            summary="zeros column by column, which the later columns make up for",
        ),
        Entry(
            name="svd",
            target="bench.plugins.compression.svd:SVD",
            track="compression",
            paper="Eckart and Young, 1936",
            summary="low rank nearest to the weight; the control without data",
        ),
        Entry(
            name="svd-compensation",
            target="bench.plugins.compression.svd_compensation:SVDCompensation",
            track="compression",
            paper="arXiv:2410.21271",
            summary="branch nearest to what a compressed weight lost; the control without data",
        ),
        Entry(
            name="wanda",
            target="bench.plugins.compression.wanda:Wanda",
            track="compression",
            paper="arXiv:2306.11695",
            summary="zeros for the smallest products of weight and input norm, row by row",
        ),
        Entry(
            name="whitened-svd",
            target="bench.plugins.compression.whitened_svd:WhitenedSVD",
            track="compression",
            paper="arXiv:2403.07378",
            summary="low rank whose outputs on calibration data are nearest to those of the weight",
        ),
    ]
