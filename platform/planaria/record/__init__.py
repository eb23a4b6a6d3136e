"""What a run leaves behind: tables, MLflow runs, models that can be served, and a report."""

from planaria.addresses import mask_secrets
from planaria.record.mlflow_store import MlflowRecorder
from planaria.record.report import write_report, write_report_for_run
from planaria.record.tables import Records, decision_row, read_rows, shift_row
from planaria.record.tracking import check_tracking_uri

__all__ = [
    "MlflowRecorder",
    "Records",
    "check_tracking_uri",
    "decision_row",
    "mask_secrets",
    "read_rows",
    "shift_row",
    "write_report",
    "write_report_for_run",
]
