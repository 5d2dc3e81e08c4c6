"""Records of runs: everything about MLflow, names and folders of runs, and the model cards of exported folders."""

from lightning_posttrain import check_siblings

check_siblings(__name__)

from tracking.logger import PatientMLFlowLogger

__all__ = ["PatientMLFlowLogger"]
