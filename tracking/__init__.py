"""Everything about MLflow: the logger, the records of a run, names of runs, and the folders of their files."""

from lightning_posttrain import check_siblings

check_siblings(__name__)

from tracking.logger import PatientMLFlowLogger

__all__ = ["PatientMLFlowLogger"]
