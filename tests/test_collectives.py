"""Exchanges between devices, read from the texts of compiled programs."""

import pytest

from benchmarks.collectives import Collective, bytes_per_device, collectives

HEADER = "HloModule jit_f, is_scheduled=true, num_partitions=8\n"


class TestCollectives:
    """Texts as XLA writes them for accelerators, of which there are none here."""

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            (
                "%r = f32[4,8]{1,0} all-reduce(%x), replica_groups={{0,1},{2,3}}",
                [Collective("all-reduce", "f32", (4, 8), 128, 2)],
            ),
            (
                "ROOT %r = pred[] all-reduce(%x), replica_groups=[2,4]<=[8]",
                [Collective("all-reduce", "pred", (), 1, 4)],
            ),
            (
                "%r = (f32[4]{0}, bf16[2,2]{1,0}) all-reduce(%x, %y), "
                "replica_groups=[1,8]<=[8]",
                [
                    Collective("all-reduce", "f32", (4,), 16, 8),
                    Collective("all-reduce", "bf16", (2, 2), 8, 8),
                ],
            ),
            (
                "%r = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), "
                "replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}",
                [Collective("all-gather", "f32", (32,), 128, 2)],
            ),
            (
                "%r = f32[4]{0} reduce-scatter(%x), replica_groups=[1,8]<=[8]",
                [Collective("reduce-scatter", "f32", (4,), 128, 8)],
            ),
            (
                "%r = u32[] all-reduce(%x), replica_groups={}, to_apply=%add",
                [Collective("all-reduce", "u32", (), 4, 8)],
            ),
            (
                "%r = f32[2]{0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}",
                [Collective("all-reduce", "f32", (2,), 8, 4)],
            ),
            (
                "%r = f32[2]{0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=4], "
                "device_ids=([4,2]T(1,0)) {'a','b':(1)2}",
                [Collective("all-reduce", "f32", (2,), 8, 4)],
            ),
            (
                "%r = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start("
                "%x), source_target_pairs={{0,1},{1,0}}",
                [Collective("collective-permute", "f32", (2,), 8, 2)],
            ),
            ("%r = f32[32]{0} all-gather-done(%x)", []),
            ("%r = f32[4]{0} add(%all-reduce, %y)", []),
        ],
    )
    def test_are_read(self, line: str, expected: list[Collective]) -> None:
        assert collectives(HEADER + "  " + line) == expected

    def test_of_unknown_groups_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="cannot be read"):
            collectives("%r = f32[] all-reduce(%x), replica_groups=?")

    def test_bytes_are_those_of_the_ring(self) -> None:
        # n - 1 steps each of scattering and of gathering, a share of S / n in each.
        for kind, phases in (("all-reduce", 2), ("all-gather", 1)):
            sent = bytes_per_device([Collective(kind, "f32", (8,), 32, 4)])
            assert sent == sum(32 / 4 for _ in range(phases) for _ in range(4 - 1))
