"""Everything about MLflow: the logger, the records of a run, names of runs, and the folders of their files."""

from tracking.logger import PatientMLFlowLogger

__all__ = ["PatientMLFlowLogger"]
