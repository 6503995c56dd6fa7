"""Scores by digit on the page."""

from __future__ import annotations

import re
from pathlib import Path

from diffuse.rundir.evaluations import DigitScores
from launch.comparison import page
from launch.comparison.wording import score
from launch.results.grouping import groups
from launch.results.results import Cell
from tests.results.test_labels import figure, results_of

GRID = "runs: [{preset: ddpm/unet_labels}, {preset: ddpm/unet_labels, seeds: 2}]"


def test_the_last_epoch_of_a_run_with_labels_has_its_fid_by_digit(tmp_path: Path) -> None:
    found = results_of(tmp_path, GRID)
    for epoch in (1, 2):
        digits = [
            DigitScores(digit=d, images=1000, fid=10 * epoch + d, floor=0.5, recognised=0.9)
            for d in range(10)
        ]
        told = figure(fid=5.0).model_copy(update={"digits": digits})
        found[0].cells.append(Cell(found[0].name, epoch, told, loss=0.1))
        found[1].cells.append(Cell(found[1].name, epoch, figure(fid=6.0), loss=0.1))
    text = page.render(found, tmp_path, "digits")
    (table,) = re.findall(r"FID of each digit.*?</table>", text, re.DOTALL)
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr")[2:]]
    of_run, of_real = rows
    assert of_run[1:] == ["2", *(score(20 + d) for d in range(10)), "90.0%"]
    assert of_real[2:12] == [score(0.5)] * 10


def test_a_page_without_labels_has_no_such_table(tmp_path: Path) -> None:
    found = results_of(tmp_path, GRID)
    found[0].cells.append(Cell(found[0].name, 1, figure(fid=6.0), loss=0.1))
    assert "FID of each digit" not in page.render(found, tmp_path, "no digits")


def test_networks_with_labels_and_without_share_a_table_that_says_so(tmp_path: Path) -> None:
    found = results_of(tmp_path, "runs: [{preset: ddpm/unet}, {preset: ddpm/unet_labels}]")
    for result, labels in zip(found, ({}, {"labels": "drawn uniformly from 10"}), strict=True):
        judged = figure(fid=6.0)
        protocol = judged.protocol.model_validate(judged.protocol.plain() | labels)
        cell = Cell(result.name, 1, judged.model_copy(update={"protocol": protocol}), loss=0.1)
        result.cells.append(cell)
    (group,) = groups(found)
    (column,) = group.columns()
    assert {cell.run for cell in column.cells} == {result.name for result in found}
    remark = "labels that a network is told are drawn uniformly from 10"
    assert group.labels == [remark] and remark in page.render(found, tmp_path, "labels")
