"""Several ablations in one table."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerdiff import UserError
from steerdiff.scripts.ablation.overview import overview

HEAD = "method,task,{},score,value,low,high,n,evaluations,key,error\n"


def test_each_setting_of_each_file_has_a_row_with_its_scores(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        HEAD.format("text_weight,clip")
        + "sdg,style,700.0,one,right,0.5,0.25,0.75,6,50.0,k,\n"
        + "sdg,style,700.0,one,inside,9.0,8.0,10.0,6,50.0,k,\n"
        + "sdg,style,0.0,,right,0.0,0.0,0.1,6,50.0,l,\n"
        + "sdg,style,0.0,,outside,12.34,10.0,15.5,6,50.0,l,\n"
    )
    (tmp_path / "b.csv").write_text(HEAD.format("tune_seed") + "asyrp,flat to 3d,1,kid,-1.5,-3.0,2.0,6,39.0,m,\n")
    assert overview([tmp_path / "a.csv", tmp_path / "b.csv"]).splitlines() == [
        "| method | task | setting | right | layout kept | error outside | feature distance inside | KID x 1000 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| sdg | style | text_weight 700, clip one | 50 % (25 to 75) |  |  |  |  |",
        "| sdg | style | text_weight 0, clip none | 0 % (0 to 10) |  | 12.3 (10.0 to 15.5) |  |  |",
        "| asyrp | flat to 3d | tune_seed 1 |  |  |  |  | -1.50 (-3.00 to 2.00) |",
    ]


def test_other_columns_can_be_asked_for(tmp_path: Path) -> None:
    row = "diffedit-mask,object,0.25,iou,0.7764,0.7502,0.8008,192,8.0,k,\n"
    (tmp_path / "a.csv").write_text(HEAD.format("finder.threshold") + row)
    assert overview([tmp_path / "a.csv"], ("iou", "guide")).splitlines() == [
        "| method | task | setting | mask IoU | distance to the image given |",
        "| --- | --- | --- | --- | --- |",
        "| diffedit-mask | object | finder.threshold 0.25 | 0.776 (0.750 to 0.801) |  |",
    ]


def test_a_setting_that_failed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEAD.format("t0") + "sdedit,style,9,,,,,,,k,t0 is 9; it must lie in [0, 1]\n")
    with pytest.raises(UserError, match=r"a.csv has settings that failed \(t0 is 9"):
        overview([tmp_path / "a.csv"])
