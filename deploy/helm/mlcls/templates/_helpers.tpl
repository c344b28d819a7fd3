{{- /* Name of the server's objects. A release named mlcls gets no second mlcls. */}}
{{- define "mlcls.name" -}}
{{ ternary .Release.Name (printf "%s-mlcls" .Release.Name) (contains "mlcls" .Release.Name) | trunc 44 | trimSuffix "-" }}
{{- end }}

{{- /* Which release's Services send requests to the pods: this one's, or those of the release that a canary joins. */}}
{{- define "mlcls.group" -}}
{{ .Values.canaryOf | default .Release.Name }}
{{- end }}

{{- /* Labels that never change, of the pods of a component: list $ "triton". */}}
{{- define "mlcls.selector" -}}
{{- $root := first . -}}
app.kubernetes.io/name: mlcls
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{- /* Labels of the pods of a component in this release and in its canaries. */}}
{{- define "mlcls.group_selector" -}}
mlcls/group: {{ include "mlcls.group" (first .) | quote }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{- define "mlcls.labels" -}}
{{- $root := first . -}}
{{ include "mlcls.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
mlcls/group: {{ include "mlcls.group" $root | quote }}
{{- end }}

{{- /* What all pods have in common; Pod Security `restricted`. Service links would set MLCLS_* variables. */}}
{{- define "mlcls.pod" -}}
serviceAccountName: {{ .Values.serviceAccountName | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "mlcls.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- /* Pods of a component on different machines and in different zones, as far as there are any. */}}
{{- define "mlcls.spread" -}}
topologySpreadConstraints:
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "mlcls.selector" $ | nindent 8 }}
{{- end }}
{{- end }}

{{- /* Asks each model for an answer, which takes twice the timeout at most. */}}
{{- define "mlcls.health" -}}
exec:
  command: [mlcls, health, --timeout, "4"{{ range .Values.models }}, {{ . | quote }}{{ end }}]
timeoutSeconds: {{ add (mul 8 (len .Values.models)) 5 }}
{{- end }}

{{- /* The mean number of requests that wait, by Little's law. Only the steps have queues: the series of ensembles do not
       rise with the load. */}}
{{- define "mlcls.waiting_requests" -}}
sum(rate(nv_inference_queue_duration_us{namespace={{ .Release.Namespace | quote }},app_kubernetes_io_instance={{ .Release.Name | quote }},model=~".*_(preprocess|engine|postprocess)(_[0-9]+)?"}[1m])) / 1e6
{{- end }}
