// Who the cloud-aggregator is, and who reads its tables. No key: on Container Apps the platform vouches for the first, on Kubernetes the
// cluster's own tokens do.

@description('Where it is.')
param location string

@description('First part of the names.')
param namePrefix string

@description('Issuer of the tokens of a cluster, as `az aks show --query oidcIssuerProfile.issuerUrl` tells. Empty: no cluster.')
param clusterIssuer string = ''

@description('Namespace and service account of the pods.')
param serviceAccount string = 'predictive-maintenance:cloud-aggregator'

resource aggregator 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${namePrefix}-aggregator'
  location: location
}

resource ofCluster 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2023-01-31' = if (!empty(clusterIssuer)) {
  parent: aggregator
  name: 'kubernetes'
  properties: {
    issuer: clusterIssuer
    subject: 'system:serviceaccount:${serviceAccount}'
    audiences: ['api://AzureADTokenExchange']
  }
}

// For Synapse, Databricks and Power BI: whoever reads the lake gets this one or a role of their own, never a key.
resource reader 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${namePrefix}-lake-reader'
  location: location
}

@description('Resource id of the identity of the cloud-aggregator.')
output aggregatorId string = aggregator.id

@description('Its client id: in the settings, and on the service account of the cluster.')
output aggregatorClientId string = aggregator.properties.clientId

@description('Its principal, which roles are given to.')
output aggregatorPrincipalId string = aggregator.properties.principalId

@description('Principal of those who read the lake.')
output readerPrincipalId string = reader.properties.principalId
